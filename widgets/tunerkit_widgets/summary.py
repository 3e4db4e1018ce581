"""What a training came to, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tunerkit as tk
from tunerkit_widgets.history import Curve, TrainingHistory, tenths
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import duration, text

WEIGHTS = ("pytorch_lora_weights.safetensors", "ema_lora_weights.safetensors", "transformer", "transformer_ema")
"""What a run leaves in its folder when it is done."""


@dataclass(frozen=True)
class Summary:
    """Rows of (what, value); the last value of a cell shows them as a table."""

    rows: tuple[tuple[str, str], ...]

    def _repr_html_(self) -> str:
        return table_html(self.rows)

    def __repr__(self) -> str:
        return table_text(self.rows)


def summarize(run: tk.Run) -> Summary:
    """Steps, time, losses, memory and files of a run, alive or over."""
    status, history = run.status, TrainingHistory.of(run)
    rows = [(text("summary.steps"), f"{status.step} / {status.total_steps}")]
    if history.losses:
        each = history.seconds / len(history.losses)
        rows.append(
            (text("summary.time"), text("summary.seconds", total=duration(history.seconds), each=f"{each:.2f}"))
        )
    curves = [(text("summary.loss"), history.losses)]
    curves += [(text("summary.part", name=name), curve) for name, curve in history.parts.items()]
    rows += [(label, change) for label, curve in curves if (change := _change(curve))]
    if len(history.evaluations) > 1:
        first, last = tenths(history.evaluations) or (0.0, 0.0)
        share = f" ({last / first - 1:+.0%})" if first else ""
        rows.append((text("summary.evaluation"), f"{_change(history.evaluations)}{share}"))
    if status.memory_peak:
        rows.append((text("summary.memory"), _memory(status)))
    files = [run.output_dir / name for name in WEIGHTS if (run.output_dir / name).exists()]
    rows += [(text("summary.file"), f"{path} ({_size(path)})") for path in files]
    return Summary(tuple(rows))


def show_files(paths: list[Path]) -> Summary:
    """A table of files (or folders) and their sizes."""
    return Summary(tuple((str(path), _size(path)) for path in paths))


def _change(curve: Curve) -> str:
    """First and last tenth of a curve in words; empty without points."""
    ends = tenths(curve)
    return text("summary.change", first=f"{ends[0]:.4f}", last=f"{ends[1]:.4f}") if ends else ""


def _memory(status: tk.RunStatus) -> str:
    """The most memory that the training has held: the GPU's where it uses one, else the process's."""
    peak, whole = status.memory_peak or 0, status.memory_total
    words = f"{peak / 2**30:.1f} GiB"
    if whole:
        words = f"{peak / 2**30:.1f} / {whole / 2**30:.1f} GiB ({peak / whole:.0%})"
    return f"{words}, {status.device}" if status.device else words


def _size(path: Path) -> str:
    size = (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
