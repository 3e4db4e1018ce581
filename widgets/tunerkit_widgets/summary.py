"""What a training came to, in one table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tunerkit as tk
from tunerkit_widgets.history import TrainingHistory, tenths
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import duration, text


@dataclass(frozen=True)
class Summary:
    """Rows of (what, value); the last value of a cell shows them as a table."""

    rows: tuple[tuple[str, str], ...]

    def _repr_html_(self) -> str:
        return table_html(self.rows)

    def __repr__(self) -> str:
        return table_text(self.rows)


def summarize(trainer: tk.Trainer, history: TrainingHistory) -> Summary:
    """Steps, time, losses, memory and files of a run."""
    rows = [(text("summary.steps"), f"{trainer.global_step} / {trainer.total_steps}")]
    rows.append((text("summary.time"), _time(history)))
    training = tenths(history.losses)
    if training:
        rows.append(
            (text("summary.loss"), text("summary.change", first=f"{training[0]:.4f}", last=f"{training[1]:.4f}"))
        )
    for name, curve in history.parts.items():
        part = tenths(curve)
        if part:
            change = text("summary.change", first=f"{part[0]:.4f}", last=f"{part[1]:.4f}")
            rows.append((text("summary.part", name=name), change))
    fixed = tenths(history.evaluations)
    if fixed and len(history.evaluations) > 1:
        first, last = fixed
        change = text("summary.change", first=f"{first:.4f}", last=f"{last:.4f}")
        rows.append((text("summary.evaluation"), f"{change} ({last / first - 1:+.0%})"))
    rows += _memory()
    rows += [(text("summary.file"), f"{path} ({_size(path)})") for path in _results(trainer.config.output_path)]
    if history.stopped:
        rows.append((text("summary.stopped"), history.stopped))
    return Summary(tuple(rows))


def show_files(paths: list[Path]) -> Summary:
    """A table of files (or folders) and their sizes."""
    return Summary(tuple((str(path), _size(path)) for path in paths))


def _time(history: TrainingHistory) -> str:
    if not history.losses:
        return "-"
    return text("summary.seconds", total=duration(history.seconds), each=f"{history.seconds / len(history.losses):.2f}")


def _memory() -> list[tuple[str, str]]:
    """Most memory held at any time: of the GPU where one is used, and of this process."""
    rows = []
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        rows.append((text("summary.gpu"), f"{peak:.1f} / {whole:.1f} GiB ({peak / whole:.0%})"))
    if sys.platform != "win32":  # which has no such count
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        rows.append(
            (text("summary.ram"), f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB")
        )
    return rows


def _results(output_dir: Path) -> list[Path]:
    names = ("pytorch_lora_weights.safetensors", "ema_lora_weights.safetensors", "transformer", "transformer_ema")
    return [output_dir / name for name in names if (output_dir / name).exists()]


def _size(path: Path) -> str:
    size = (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
