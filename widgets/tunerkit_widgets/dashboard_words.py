"""The state of a run in words: as HTML for the page, and as plain text."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunerkit_widgets.dashboard_run import BROKEN, ENDED, STARTING, RunReader, Status
from tunerkit_widgets.guard import ERROR_COLOUR, GOOD_COLOUR, QUIET_COLOUR
from tunerkit_widgets.history import tenths
from tunerkit_widgets.list_rows import size_words
from tunerkit_widgets.texts import duration, text

STATES = {
    "starting": "dashboard.state_starting",
    "preparing": "dashboard.state_preparing",
    "running": "dashboard.state_running",
    "paused": "dashboard.state_paused",
    "validating": "dashboard.state_validating",
    "saving": "dashboard.state_saving",
    "done": "dashboard.state_done",
    "stopped": "dashboard.state_stopped",
    "failed": "dashboard.state_failed",
    "died": "dashboard.state_died",
}
BUSY_COLOUR = "var(--jp-brand-color1, #1976d2)"
PAUSED_COLOUR = "var(--jp-warn-color1, #f57c00)"
LINE_COLOUR = "var(--jp-border-color2, #c0c0c0)"
COLOURS = {"paused": PAUSED_COLOUR, "done": GOOD_COLOUR, "stopped": QUIET_COLOUR} | dict.fromkeys(BROKEN, ERROR_COLOUR)
"""Of the states' marks; the other states are `BUSY_COLOUR`. The letters keep the page's colour, so they can be read."""
LOW_DISK = 5 * 2**30
"""Bytes; less is shown as a fault to come."""
CPU = "cpu"
"""The device of a run whose memory is the machine's; else it is the name of a GPU."""
UNKNOWN = "–"


@dataclass(frozen=True)
class Fact:
    """A number with its name; `details` stand below it, and `bad` ones are marked."""

    label: str
    value: str
    details: str = ""
    bad: bool = False

    @property
    def words(self) -> str:
        return f"{self.value} ({self.details})" if self.details else self.value

    def __str__(self) -> str:
        return f"{self.label} {self.words}"


def state_words(status: Status) -> str:
    return text(STATES[status.state]) if status.state in STATES else status.state


def step_words(reader: RunReader) -> str:
    """How far it is, and what is being done beside the steps; empty before either is known."""
    status, words = reader.status, []
    if status.total_steps:
        share = f"{reader.step / status.total_steps:.0%}"
        words.append(text("dashboard.step", step=reader.step, total=status.total_steps, share=share))
    if status.activity and status.state not in ENDED and status.activity != status.state:
        words.append(status.activity)
    return " · ".join(words)


def facts(reader: RunReader) -> list[Fact]:
    """Loss, learning rate, speed, time, memory and disk, as far as they are known."""
    status = reader.status
    found = [_loss(reader), _number("dashboard.lr", reader.lr, ".2e"), _speed(status), _time(reader)]
    if status.memory_used is not None:
        found.append(_memory(reader))
    if status.disk_free is not None:
        low = status.disk_free < LOW_DISK
        found.append(Fact(text("dashboard.disk"), size_words(status.disk_free), bad=low))
    return found


def progress_line(reader: RunReader) -> str:
    """State, step and the facts that move, in one line."""
    words = [state_words(reader.status), step_words(reader)]
    if reader.loss is not None:
        words += [str(fact) for fact in facts(reader)[:4] if fact.value != UNKNOWN]
    return " · ".join(word for word in words if word)


def closing_words(reader: RunReader) -> str:
    """What became of a run that has ended, how far the evaluation loss fell, and the memory beside the planned one."""
    status = reader.status
    folder = reader.run.output_dir
    if status.state == "done":
        lines = [text("dashboard.done", step=reader.step, folder=folder)]
    elif status.state == "stopped":
        lines = [text("dashboard.stopped", step=reader.step)]
    else:
        return "\n".join([state_words(status), *trouble(status)])
    change = tenths(reader.history.evaluations)
    if change and len(reader.history.evaluations) > 1:
        first, last = change
        lines.append(
            text("dashboard.evaluation", first=f"{first:.4f}", last=f"{last:.4f}", share=f"{last / first:.0%}")
        )
    if reader.planned is not None and _on_gpu(status) and (peak := peak_words(reader)):
        lines.append(f"{text('dashboard.gpu')}: {peak}")
    return "\n".join(lines)


def trouble(status: Status) -> list[str]:
    """Cause and fix of a run that failed or died, one line each; nothing else."""
    if status.state not in BROKEN:
        return []
    cause = status.error or text("dashboard.no_cause" if status.state == "failed" else "dashboard.no_process")
    return [cause, text("dashboard.hint", hint=status.hint)] if status.hint else [cause]


def attach_words(output_dir: Path) -> str:
    """What to write in a cell to follow a run again."""
    return f"await tw.follow(tk.attach({str(output_dir)!r}))"


# HTML ----------------------------------------------------------------------------------------------------------


def chip_html(status: Status) -> str:
    """The state beside a mark of its colour; screen readers say it whenever it is put on the page."""
    colour = COLOURS.get(status.state, BUSY_COLOUR)
    return (
        f"<div role='status' style='display:inline-flex;align-items:center;gap:8px;padding:1px 12px;font-weight:600;"
        f"border:1px solid {colour};border-radius:14px'>"
        f"<span aria-hidden='true' style='width:10px;height:10px;flex:none;border-radius:5px;background:{colour}'>"
        f"</span><span>{html.escape(state_words(status))}</span></div>"
    )


def facts_html(shown: Sequence[Fact]) -> str:
    """A row of numbers under their names, in as many lines as the page is narrow."""
    style = "display:flex;flex-wrap:wrap;gap:8px 28px;margin:4px 0"
    return f"<div style='{style}'>{''.join(map(_fact_html, shown))}</div>"


def trouble_html(reader: RunReader) -> str:
    """The error card: cause, fix and the last lines of the log; empty where nothing is wrong."""
    lines = trouble(reader.status)
    if not lines:
        return ""
    cause, fix = html.escape(lines[0]), "".join(f"<div>{html.escape(line)}</div>" for line in lines[1:])
    return (
        f"<div role='alert' style='border:1px solid {ERROR_COLOUR};border-left-width:5px;padding:8px 12px;"
        f"margin:6px 0;line-height:1.5'><div style='font-weight:600;white-space:pre-wrap'>{cause}</div>{fix}"
        f"{log_html(reader.log)}</div>"
    )


def log_html(lines: Sequence[str], *, titled: bool = True) -> str:
    """The last lines of the log, below a line that says what they are; empty without one."""
    if not lines:
        return ""
    title = f"<div style='margin-top:6px;color:{QUIET_COLOUR}'>{html.escape(text('dashboard.log'))}</div>"
    return (title if titled else "") + _pre(lines)


def marked_html(lines: Sequence[str]) -> str:
    """Lines that are not to be overlooked; empty without one."""
    body = "<br>".join(html.escape(line) for line in lines if line)
    mark = f"border-left:4px solid {PAUSED_COLOUR};padding:2px 8px;margin:4px 0;line-height:1.5"
    return f"<div style='{mark}'>{body}</div>" if body else ""


def note_html(lines: Sequence[str]) -> str:
    """Quiet lines; empty without one."""
    body = "<br>".join(html.escape(line) for line in lines if line)
    return f"<div style='color:{QUIET_COLOUR};line-height:1.5'>{body}</div>" if body else ""


def _pre(lines: Sequence[str]) -> str:
    words = html.escape("\n".join(lines))
    return (
        "<pre style='margin:2px 0;max-height:360px;overflow:auto;white-space:pre-wrap;line-height:1.35;"
        f"font-size:12px'>{words}</pre>"
    )


def _fact_html(fact: Fact) -> str:
    colour = f";color:{ERROR_COLOUR}" if fact.bad else ""
    details = f"<div style='{_SMALL}'>{html.escape(fact.details)}</div>" if fact.details else ""
    return (
        f"<div style='line-height:1.4'><div style='{_SMALL}'>{html.escape(fact.label)}</div>"
        f"<div style='font-weight:600;font-variant-numeric:tabular-nums{colour}'>{html.escape(fact.value)}</div>"
        f"{details}</div>"
    )


_SMALL = f"font-size:12px;color:{QUIET_COLOUR}"


# Facts ---------------------------------------------------------------------------------------------------------


def _number(label: str, value: float | None, form: str) -> Fact:
    return Fact(text(label), UNKNOWN if value is None else format(value, form))


def _loss(reader: RunReader) -> Fact:
    smooth = reader.smooth_loss
    details = [] if smooth is None else [text("dashboard.smoothed", loss=f"{smooth:.4f}")]
    details += [text("dashboard.part", name=name, loss=f"{loss:.4f}") for name, loss in reader.parts.items()]
    return Fact(text("dashboard.loss"), _number("dashboard.loss", reader.loss, ".4f").value, ", ".join(details))


def _speed(status: Status) -> Fact:
    each = status.seconds_per_step
    if not each:
        return Fact(text("dashboard.speed"), UNKNOWN)
    value = text("dashboard.fast", value=f"{1 / each:.2f}") if each < 1 else text("dashboard.slow", value=f"{each:.2f}")
    return Fact(text("dashboard.speed"), value)


def _time(reader: RunReader) -> Fact:
    """How long it will take, or has taken: of this process."""
    status = reader.status
    if status.state in ENDED:
        started, ended = status.started, status.heartbeat
        spent = UNKNOWN if started is None or ended is None else duration(ended - started)
        return Fact(text("dashboard.time"), spent)
    left = None if status.state in STARTING else status.seconds_left
    return Fact(text("dashboard.left"), UNKNOWN if left is None else duration(left))


def _memory(reader: RunReader) -> Fact:
    """What the run holds, its peak so far, the planned one, and what there is."""
    status = reader.status
    details = [peak_words(reader)]
    if status.memory_total is not None:
        details.append(text("dashboard.whole", total=size_words(status.memory_total)))
    label = text("dashboard.gpu" if _on_gpu(status) else "dashboard.ram")
    return Fact(label, size_words(status.memory_used or 0), " ".join(filter(None, details)))


def peak_words(reader: RunReader) -> str:
    """The peak so far, and the planned one where both are of the GPU's memory; empty where no peak is known."""
    peak = reader.status.memory_peak
    if peak is None:
        return ""
    words = text("dashboard.peak", peak=size_words(peak))
    if reader.planned is None or not _on_gpu(reader.status):
        return words
    return f"{words} {text('dashboard.planned', planned=size_words(reader.planned))}"


def _on_gpu(status: Status) -> bool:
    return (status.device or CPU) != CPU
