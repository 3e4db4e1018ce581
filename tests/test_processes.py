"""Two processes train one run: the order of samples is shared and gradients are averaged."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tunerkit as tk
from tunerkit.training.run_folder import read_metrics


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_accumulation(
    make_config: Callable[..., tk.TrainConfig], tmp_path: Path
) -> None:
    """2 processes x 1 batch a step see the batches of 1 process x 2 batches, in the same order."""
    path = tmp_path / "config.json"
    shared = {"max_train_steps": 3, "device": "cpu", "checkpoint_step_interval": 2}
    make_config(output_dir=str(tmp_path / "two"), **shared).save(path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    ended = subprocess.run(
        [*command, "--master_port", str(free_port()), "-m", "tunerkit", "train", str(path)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

    trainer = tk.Trainer(
        make_config(output_dir=str(tmp_path / "one"), gradient_accumulation_steps=2, **shared)
    ).prepare()
    expected = [result.loss for result in trainer.steps()]
    trainer.close()
    found = [row["loss"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl")]
    assert found == pytest.approx(expected, rel=1e-5)
    one, two = (load_file(tmp_path / run / "pytorch_lora_weights.safetensors") for run in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-4
