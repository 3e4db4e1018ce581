"""Uploading a run to the hub: the token is tried before anything is loaded, and a failed upload costs nothing."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.config.prompts import safe_name
from tunerkit.errors import ConfigError, Problem, TunerkitError
from tunerkit.reporting.hub_files import staged
from tunerkit.reporting.listening import Listener
from tunerkit.reporting.trackers import run_name

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

logger = logging.getLogger("tunerkit")
TRIES = 3
WAIT_SECONDS = 5.0
"""Before the second try; twice as long before the third."""
UPLOADING = "uploading to the hub"
NO_TOKEN = "needs a token of the hub, and there is none"
SIGN_IN = "run `hf auth login`, or set HF_TOKEN, with a token that may write"
LATER = ", or set push_to_hub to false and upload when the run is done: python -m tunerkit push OUTPUT_DIR"


@dataclass(frozen=True)
class HubTarget:
    """A repository to upload to.

    Attributes:
        repo_id: owner/name.
        private: whether it is made private, where it does not exist yet.
    """

    repo_id: str
    private: bool


# Before the run ------------------------------------------------------------------------------------------------


def token_problems(config: TrainConfig) -> list[Problem]:
    """That there is a token at all; whether it is good, only the hub knows."""
    from huggingface_hub import get_token

    if get_token():
        return []
    return [Problem(_setting(config), True, NO_TOKEN, SIGN_IN)]


def hub_target(config: TrainConfig, otherwise: str = LATER) -> tuple[HubTarget | None, list[Problem]]:
    """The repository, after asking the hub who we are there; or what stands in the way.

    Args:
        config: resolved settings.
        otherwise: what else can be done where the hub cannot be used now.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        account = api.whoami()
    except Exception as error:  # the client's errors have no common class
        message, fix = _explained(error, otherwise)
        return None, [Problem(_setting(config), True, message, fix)]
    name = config.hub_model_id or safe_name(config.tracker_project_name or run_name(config))
    repo_id = name if "/" in name else f"{account['name']}/{name}"
    problems = [*_token_problems(config, account, repo_id), *_publicity_problems(config, api, repo_id)]
    return (None, problems) if problems else (HubTarget(repo_id, config.model_card_private), [])


def _token_problems(config: TrainConfig, account: dict[str, Any], repo_id: str) -> list[Problem]:
    """What is known of the token's rights; those of a fine-grained one show only when it is used."""
    role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        message = f"the token of {account['name']} may only read"
        fix = "make one that may write at https://huggingface.co/settings/tokens, then `hf auth login --force`"
        return [Problem(_setting(config), True, message, fix)]
    owners = [account["name"], *(group.get("name") for group in account.get("orgs") or [])]
    owner = repo_id.partition("/")[0]
    if role == "write" and owner not in owners:
        message = f"{account['name']} belongs to no organisation {owner}"
        return [Problem("hub_model_id", config.hub_model_id, message, f"write one of {', '.join(owners)} in front")]
    return []


def _publicity_problems(config: TrainConfig, api: Any, repo_id: str) -> list[Problem]:
    """A repository that everybody sees, where a private one is asked for."""
    if not config.model_card_private:
        return []
    try:
        private = api.model_info(repo_id).private
    except Exception:  # it does not exist yet, or cannot be asked about: the upload makes it, or says why not
        return []
    if private is not False:
        return []
    message = f"{repo_id} exists and is public"
    return [Problem("model_card_private", True, message, "make it private on its page, or choose another hub_model_id")]


def _setting(config: TrainConfig) -> str:
    return "push_to_hub" if config.push_to_hub else "push_checkpoints_to_hub"


def _explained(error: Exception, otherwise: str = "") -> tuple[str, str]:
    """Why the hub could not be used, and what to do."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case errors.LocalTokenNotFoundError():
            return NO_TOKEN, SIGN_IN
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set", f"remove it{otherwise}"
        case errors.HfHubHTTPError() if status in (401, 403):
            return f"the hub refuses the token (status {status})", SIGN_IN
        case errors.HfHubHTTPError():
            return f"the hub ({constants.ENDPOINT}) answers with status {status}", f"try again later{otherwise}"
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return f"the hub ({constants.ENDPOINT}) cannot be reached: {line}", f"check the network and HF_ENDPOINT{otherwise}"


# Uploading -----------------------------------------------------------------------------------------------------


def _sent(target: HubTarget, folder: Path, words: str) -> str:
    """Upload a folder: the page's address.

    Raises:
        TunerkitError: after `TRIES` failures, or one that would only repeat itself.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    for attempt in range(TRIES):
        try:
            page = api.create_repo(target.repo_id, private=target.private or None, exist_ok=True)
            api.upload_folder(repo_id=target.repo_id, folder_path=folder, commit_message=words)
            return str(page)
        except Exception as error:
            message, fix = _explained(error)
            if attempt == TRIES - 1 or _is_final(error):
                raise TunerkitError(f"{target.repo_id}: {message}. Fix: {fix}") from error
            time.sleep(WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _is_final(error: Exception) -> bool:
    """Whether another try would end the same way."""
    from huggingface_hub import errors

    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError)):
        return True
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    return status in (400, 401, 403, 404, 413)


def push(config: TrainConfig) -> str:
    """Upload a run that has ended, or what it has so far: the page's address.

    Args:
        config: resolved settings of the run.

    Raises:
        ConfigError: if the hub refuses the token, or the repository.
        TunerkitError: if there are no weights, or the upload fails.
    """
    config = config.changed(push_to_hub=True)
    target, problems = hub_target(config, otherwise="")
    if target is None:
        raise ConfigError(problems)
    with staged(config, target.repo_id) as folder:
        return _sent(target, folder, _words(None))


def _words(checkpoint: Path | None) -> str:
    """What the hub's history says of an upload."""
    return f"Upload {'the result' if checkpoint is None else checkpoint.name}"


@dataclass(frozen=True)
class _Job:
    """An upload that waits.

    Attributes:
        folder: what is uploaded.
        words: for the hub's history.
        clean: removes the folder when it is left.
    """

    folder: Path
    words: str
    clean: contextlib.ExitStack


class HubListener(Listener):
    """Uploads checkpoints when they are saved and the result when it is written.

    Args:
        config: resolved settings.
        target: where to.
        tell: shows what is done in the run's status.
        background: upload in a thread, while the training goes on.
    """

    name = "push_to_hub"

    def __init__(
        self, config: TrainConfig, target: HubTarget, tell: Callable[[str], None], *, background: bool
    ) -> None:
        self._config, self._target, self._tell, self._background = config, target, tell, background
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def event(self, row: dict[str, Any]) -> None:
        if row["kind"] == "checkpoint" and self._config.push_checkpoints_to_hub:
            self._begin(self._config.output_path / row["path"])

    def settings(self, config: TrainConfig) -> None:
        self._config = config  # which is uploaded too

    def result(self, path: Path) -> None:
        del path
        if self._config.push_to_hub:
            self._begin(None)

    def close(self) -> None:
        """Wait for uploads in the background."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._jobs.put(None)
        if thread.is_alive():
            self._tell(UPLOADING)
        thread.join()

    def _begin(self, checkpoint: Path | None) -> None:
        """Gather the files now, before a checkpoint is pruned, and upload them now or in the background."""
        with self._surviving(), contextlib.ExitStack() as stack:
            folder = stack.enter_context(staged(self._config, self._target.repo_id, checkpoint))
            job = _Job(folder, _words(checkpoint), stack.pop_all())
            if self._background:
                self._queue(job)
            else:
                self._tell(UPLOADING)
                self._send(job)
                self._tell("")

    def _queue(self, job: _Job) -> None:
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tunerkit-hub", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._send(job)

    def _send(self, job: _Job) -> None:
        with self._surviving(), job.clean:
            logger.info("uploaded to %s", _sent(self._target, job.folder, job.words))

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """A failure costs nothing but a word about how to upload later."""
        try:
            yield
        except Exception as error:
            reason = str(error).partition(". Fix:")[0] or type(error).__name__
            folder = self._config.output_path
            logger.warning(
                "the upload to the hub failed (%s). Everything is kept in %s. Fix: python -m tunerkit push %s",
                reason,
                folder,
                folder,
            )
