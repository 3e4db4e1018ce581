"""Who a run reports to, by its settings: checked before anything is loaded, then set listening."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunerkit.config.reporting_rules import package_problems, pushes
from tunerkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.training.run_folder import RunFolder


def check_reporting(config: TrainConfig) -> list[Problem]:
    """What stands in the way on this machine: missing packages, nobody logged in. Nothing is sent anywhere."""
    problems = list(package_problems(config))
    if not problems:
        from tunerkit.reporting.trackers import login_problems

        problems = login_problems(config)
    if pushes(config):
        from tunerkit.reporting.hub import token_problems

        problems += token_problems(config)
    return problems


def start_reporting(config: TrainConfig, folder: RunFolder, processes: int = 1) -> None:
    """Let everyone whom the settings name listen to a run; the hub is asked whether it would take the result.

    Args:
        config: resolved settings.
        folder: the run's folder, claimed by this process. Closing it ends the listening.
        processes: how many train together.

    Raises:
        ConfigError: if the hub refuses the token, or the repository.
    """
    from tunerkit.reporting.trackers import tracker_listeners
    from tunerkit.reporting.webhook import webhook_listeners

    listeners = [*webhook_listeners(config), *tracker_listeners(config)]
    for listener in listeners:  # first: they are to hear of a refusal
        folder.listeners.add(listener)
    if pushes(config):
        from tunerkit.reporting.hub import HubListener, hub_target

        target, problems = hub_target(config)
        if target is None:
            raise ConfigError(problems)
        # Processes that train together do not wait for each other as long as an upload may take.
        background = config.push_to_hub_background or processes > 1
        folder.listeners.add(HubListener(config, target, folder.activity, background=background))
