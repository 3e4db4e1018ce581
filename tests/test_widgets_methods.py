"""What methods cost, as the guided notebooks show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import tunerkit as tk
import tunerkit_widgets as tw

MakeConfig = Callable[..., tk.TrainConfig]
ROUTE = {"selection_ratio": 0.5, "start_layer_idx": 0, "end_layer_idx": -1}
METHODS: dict[str, dict[str, Any]] = {
    "rollout": {"scheduled_sampling_max_step_offset": 25, "scheduled_sampling_probability": 1.0},
    "routing": {"tread_config": {"routes": [ROUTE]}},
}


def test_a_table_of_what_each_takes(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the plain step; of a method that this model cannot have, the reason."""
    plain = tk.plan(make_config(), 24, gpu="RTX 4090")
    asked: list[tuple[Any, ...]] = []

    def planned(config: tk.TrainConfig, vram_gib: float | None, **others: Any) -> tk.Plan:
        asked.append((config.scheduled_sampling_max_step_offset, vram_gib, others["gpu"]))
        if config.tread_config:
            return real(config, vram_gib, **others)
        step = plain.phase("training step")
        more = replace(step, peak=3 * 2**30, work=step.work * 1.5)
        return replace(plain, phases=tuple(more if one is step else one for one in plain.phases))

    real = tk.plan
    monkeypatch.setattr(tk, "plan", planned)
    tw.show_methods(plain, METHODS)
    head, none, rollout, refused = capsys.readouterr().out.splitlines()
    assert asked[0] == (25, 24.0, "RTX 4090")
    assert head.split("  ")[0] == "Method"
    assert head.endswith("Seconds of a step")
    assert plain.seconds is not None
    assert none.split()[0] == "none"
    assert none.split()[-2:] == [f"{plain.seconds.typical:.2g}", "s"]
    assert rollout.split()[:4] == ["rollout", "3.0", "GiB", "+50%"]
    assert refused.startswith("routing: the feed-forward layers of Sana Video 2B are convolutions")


def test_without_a_gpu_there_are_no_seconds(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """And a rollout in every step asks for more arithmetic, an alignment that is off for as much."""
    plain = tk.plan(make_config())
    tw.show_methods(plain, {"rollout": METHODS["rollout"], "same": {"crepa_lambda": 0.1}})
    head, _, rollout, same = capsys.readouterr().out.splitlines()
    assert "Seconds" not in head
    assert 20 < float(rollout.split()[-1].strip("+%")) < 100
    assert same.split()[-1] == "+0%"
