"""Rendered videos in a notebook: one row per prompt, the base model beside the trained one."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import tunerkit as tk
from tunerkit_widgets.previews import data_uri, facts, has_sound, poster, preview
from tunerkit_widgets.surroundings import headless, show
from tunerkit_widgets.texts import text

HEADLESS_BYTES = 70_000
"""All videos of one table together, with their posters, where the notebook is a file to keep."""
LIVE_BYTES = 6_000_000
SOUND_FACTOR = 2
"""Videos with sound get so many times as much room."""
LEAST_BYTES = 11_000
"""A video below that can hardly be recognised: rather than that, the table has fewer rows."""
POSTER_WIDTHS = (160, 320)
"""Pixels, in a table with little room for each video and with much."""
PLAYER_WIDTH = 280
"""Pixels on the page."""

_NAME = re.compile(r"(?P<nickname>.+)-(?P<width>\d+)x(?P<height>\d+)-(?P<seed>\d+)(?P<ema>-ema)?\.mp4")
_STEP = re.compile(r"step-(\d+)")


def show_videos(
    videos: Iterable[tk.Rendering | Path | str], *, base: bool = True, max_bytes: int | None = None
) -> None:
    """Show videos that play inside the notebook, also in one that was saved and is opened elsewhere.

    Args:
        videos: renderings, as from `run.videos()` or `trainer.validate()`, or paths of mp4 files.
        base: put the base model's rendering of the same prompt, size and seed on the left.
        max_bytes: all videos together; larger ones are shown smaller. The files are not touched.
    """
    found = [_rendering(video) for video in videos]
    show(videos_html(found, base=base, max_bytes=max_bytes), videos_text(found))


def videos_html(videos: Sequence[tk.Rendering], *, base: bool = True, max_bytes: int | None = None) -> str:
    """The table of `show_videos` as HTML that needs no file, script or address."""
    if not videos:
        return f"<p>{html.escape(text('videos.none'))}</p>"
    rows = list(_rows(videos, base))
    factor = SOUND_FACTOR if any(has_sound(video.path) for video in videos) else 1
    room = max_bytes or factor * (HEADLESS_BYTES if headless() else LIVE_BYTES)
    fitting = max(1, room // (factor * LEAST_BYTES) // max(len(row) for row in rows))
    shown, left = rows[:fitting], rows[fitting:]
    each = room // sum(len(row) for row in shown)
    body = "".join(f"<tr>{''.join(_cell(video, each) for video in row)}</tr>" for row in shown)
    more = text("videos.more", count=len(left), folder=left[0][-1].path.parent) if left else ""
    return f"<table>{body}</table>{html.escape(more)}"


def videos_text(videos: Sequence[tk.Rendering]) -> str:
    """One line per video, with its file."""
    if not videos:
        return text("videos.none")
    return "\n".join(f"{_title(video)}, {_details(video)}: {video.path}" for video in videos)


def base_video(video: tk.Rendering) -> tk.Rendering | None:
    """The base model's rendering of the same prompt, size and seed, if the run has made one."""
    name = f"{video.nickname}-{video.size[0]}x{video.size[1]}-{video.seed}.mp4"
    path = video.path.parent.parent / "step-0" / name
    if video.step == 0 or not path.is_file():
        return None
    return replace(video, path=path, step=0, ema=False, comparison=None)


def _rows(videos: Sequence[tk.Rendering], base: bool) -> Iterable[list[tk.Rendering]]:
    """Videos of the same prompt, size and seed, the base model's first."""
    groups: dict[tuple[str, int, tuple[int, int]], list[tk.Rendering]] = {}
    for video in videos:
        groups.setdefault((video.nickname, video.seed, video.size), []).append(video)
    for group in groups.values():
        first = base_video(group[0]) if base else None
        yield [first, *group] if first else group


def _cell(video: tk.Rendering, max_bytes: int) -> str:
    # The address stands on the tag itself: notebooks that are not trusted drop <source>.
    first_frame = poster(video.path, POSTER_WIDTHS[max_bytes > 10 * LEAST_BYTES])
    picture = data_uri(first_frame, "image/jpeg")
    movie = data_uri(preview(video.path, max_bytes - len(first_frame)), "video/mp4")
    label = html.escape(f"{_title(video)}: {video.prompt or video.nickname}", quote=True)
    prompt = html.escape(video.prompt or video.nickname)
    return (
        f"<td style='text-align:left;vertical-align:top;max-width:{PLAYER_WIDTH + 20}px'>"
        f"<video src='{movie}' poster='{picture}' width='{PLAYER_WIDTH}' aria-label='{label}' "
        "controls loop playsinline preload='metadata'></video>"
        f"<br><b>{html.escape(_title(video))}</b><br><small>{prompt}<br>{html.escape(_details(video))}</small></td>"
    )


def _title(video: tk.Rendering) -> str:
    if video.step == 0:
        return text("videos.base")
    return text("videos.ema" if video.ema else "videos.tuned", step=video.step)


def _details(video: tk.Rendering) -> str:
    width, height = video.size
    details = text(
        "videos.details", width=width, height=height, frames=video.frames, fps=f"{video.fps:g}", seed=video.seed
    )
    return text("videos.heard", details=details) if has_sound(video.path) else details


def _rendering(video: tk.Rendering | Path | str) -> tk.Rendering:
    """What is known of a file from its name and content."""
    if isinstance(video, tk.Rendering):
        return video
    path = Path(video)
    name, step = _NAME.fullmatch(path.name), _STEP.fullmatch(path.parent.name)
    frames, fps = facts(path)
    return tk.Rendering(
        path=path,
        prompt="",
        nickname=name["nickname"] if name else path.stem,
        seed=int(name["seed"]) if name else 0,
        step=int(step[1]) if step else 0,
        frames=frames,
        fps=fps,
        size=(int(name["width"]), int(name["height"])) if name else _size(path),
        ema=bool(name and name["ema"]),
    )


def _size(path: Path) -> tuple[int, int]:
    import av

    with av.open(str(path)) as container:
        return container.streams.video[0].width, container.streams.video[0].height
