"""What a webhook is told: the events of a run as messages, each of one type and of one importance."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerkit.config.reporting_rules import LEVELS
from tunerkit.running.status import ENDED

MEDIA_BYTES = 2**20
"""Larger videos and pictures are told of and not sent along."""
DISCORD_LETTERS = 2000
"""Longest text that a Discord channel takes."""
FAILURE, WARNING, INFO, DETAIL = (LEVELS[name] for name in ("error", "warning", "info", "debug"))


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        type: `lifecycle.stage`, `training.status`, `training.evaluation`, `training.checkpoint`, `validation.video`,
            `validation.image` (an unfinished video), `notification` (a warning) or `error`.
        level: importance, as in `tunerkit.config.reporting_rules.LEVELS`.
        text: what happened, for a person.
        facts: the same for programs.
        media: a video or picture, with its media type; read when the message is sent.
    """

    type: str
    level: int
    text: str
    facts: Mapping[str, Any]
    media: tuple[Path | bytes, str] | None = None

    @property
    def droppable(self) -> bool:
        """Whether the next message of this type says all that this one does."""
        return self.type in ("training.status", "validation.image")

    @property
    def in_memory(self) -> bool:
        """Whether it carries a picture that is in no file."""
        return self.media is not None and isinstance(self.media[0], bytes)

    def raw(self, run: str, time: float, *, media: bool) -> dict[str, Any]:
        """The message as JSON has it.

        Args:
            run: what the run is called.
            time: seconds since 1970.
            media: whether what is small enough is sent along, as a data URI.
        """
        body = {"type": self.type, "run": run, "time": time, "text": self.text, **self.facts}
        uri = self._data_uri() if media else None
        return body if uri is None else {**body, "data": uri}

    def discord(self, run: str, prefix: str) -> dict[str, Any]:
        """The message as text for a Discord channel, which cannot mention anybody."""
        text = f"{prefix} **{run}**: {self.text}".strip()
        return {"content": text[:DISCORD_LETTERS], "allowed_mentions": {"parse": []}}

    def _data_uri(self) -> str | None:
        if self.media is None:
            return None
        source, kind = self.media
        try:
            if isinstance(source, Path):
                source = source.read_bytes() if source.stat().st_size <= MEDIA_BYTES else b""
        except OSError:  # deleted in the meantime
            return None
        fits = 0 < len(source) <= MEDIA_BYTES
        return f"data:{kind};base64,{base64.b64encode(source).decode()}" if fits else None


def of_event(row: Mapping[str, Any], folder: Path) -> Message | None:
    """The message for a line of events.jsonl; None for what is told otherwise.

    Args:
        row: the line.
        folder: the run's.
    """
    step, text = row["step"], row["text"]
    match row["kind"]:
        case "state":
            return _stage(text, step, text) if text in (*ENDED, "paused") else None
        case "checkpoint":
            return Message("training.checkpoint", INFO, f"step {step}: {text}", {"step": step, "path": row["path"]})
        case "video":
            facts = {"step": step, "path": row["path"]}
            return Message("validation.video", INFO, f"step {step}: {text}", facts, (folder / row["path"], "video/mp4"))
        case "evaluation":
            return Message("training.evaluation", INFO, f"step {step}: {text}", {"step": step, "loss": row["loss"]})
        case "warning":
            return Message("notification", WARNING, text, {"step": step})
        case "error":
            hint = row.get("hint")
            words = f"failed at step {step}: {text}" + (f". Fix: {hint}" if hint else "")
            return Message("error", FAILURE, words, {"step": step, "error": text, "hint": hint})
    return None


def of_activity(words: str) -> Message:
    """The message that something else is done now; what is counted ("encoding clips 5 of 8") is one stage."""
    stage = re.sub(r"\s*\d+ of \d+$", "", words)
    return _stage(stage, None, stage)


def _stage(stage: str, step: int | None, text: str) -> Message:
    return Message("lifecycle.stage", INFO, text, {"stage": stage} | ({} if step is None else {"step": step}))


def of_step(row: Mapping[str, Any], total: int) -> Message:
    """The message of a step: its loss, learning rate, gradient norm and duration."""
    facts = {key: value for key, value in row.items() if key != "samples"}
    text = f"step {row['step']} of {total}: loss {row['loss']:.5f}, lr {row['lr']:.2e}, {row['seconds']:.2f} s"
    return Message("training.status", INFO, text, {**facts, "total_steps": total})


def of_preview(row: Mapping[str, Any], picture: bytes, media_type: str) -> Message:
    """The message of an unfinished video."""
    text = f"step {row.get('step')}: a video is being rendered"
    return Message("validation.image", INFO, text, dict(row), (picture, media_type))
