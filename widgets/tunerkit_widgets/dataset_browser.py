"""Look at the clips of a dataset, at what is used of them and why, and put their captions right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tunerkit as tk
from tunerkit_widgets.dataset_browser_pictures import Pictures
from tunerkit_widgets.dataset_browser_rows import (
    Row,
    bucket_head,
    bucket_rows,
    buckets,
    clean,
    page_rows,
    static_html,
    static_text,
)
from tunerkit_widgets.guard import guarded
from tunerkit_widgets.surroundings import headless, show_view
from tunerkit_widgets.texts import text

STATIC_ROWS = 50
"""Files in the table where there is no widget, the dropped ones first."""
FIRST_PICTURES = 16


class DatasetBrowser:
    """All files of the datasets with pictures, decisions and captions; the captions can be edited.

    Where nobody can click, the table of the report is shown, and that of the buckets.

    Args:
        source: settings, or a report of them. With a report alone captions are not editable and batches not counted,
            since both are a matter of the settings.

    Raises:
        DatasetError, ConfigError: as `tk.inspect_dataset`.
    """

    def __init__(self, source: tk.TrainConfig | tk.DatasetReport) -> None:
        self._config = source if isinstance(source, tk.TrainConfig) else None
        self._report = tk.inspect_dataset(source) if isinstance(source, tk.TrainConfig) else source
        self._captions = _caption_files(source) if isinstance(source, tk.TrainConfig) else None
        self._saved: dict[Path, str] = {}
        self._turn = 0
        self._looking = threading.Lock()
        self._outdated = threading.Event()
        self.widget: Any = None
        if not headless():
            self._build()

    # Results ---------------------------------------------------------------------------------------------------

    @property
    def report(self) -> tk.DatasetReport:
        """The decisions about all files, as they were when they were last looked at."""
        return self._report

    @property
    def selected(self) -> Row | None:
        """The row of the chosen clip; None where none is."""
        number = self.widget.selected if self.widget is not None else -1
        return self._report.rows[number] if 0 <= number < len(self._report.rows) else None

    @property
    def changed(self) -> bool:
        """Whether captions were edited here and not put back: caching encodes them anew when it runs next."""
        return self._captions is not None and self._captions.changed

    def look_again(self) -> tk.DatasetReport:
        """Decide about all files anew, and show it; unchanged files are not opened again."""
        with self._looking:
            if self._config is not None:
                chosen = self.selected
                self._report = tk.inspect_dataset(self._config)
                if self.widget is not None:
                    self._show(chosen)
            return self._report

    # Static ----------------------------------------------------------------------------------------------------

    def static(self) -> str:
        """The tables of files and buckets as HTML, with pictures."""
        return static_html(self._report, buckets(self._report, self._config), STATIC_ROWS)

    def __str__(self) -> str:
        return static_text(self._report, buckets(self._report, self._config))

    def _ipython_display_(self) -> None:
        show_view(self)

    # Widgets ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        from tunerkit_widgets.dataset_browser_view import DatasetView, words

        self.pictures = Pictures()
        self.widget = DatasetView(words=words(), table=self._table())
        self._actions: dict[str, Callable[[dict[str, Any]], None]] = {
            "pictures": self._send_pictures,
            "videos": self._send_videos,
            "open": self._open,
            "save": self._save,
            "count": self._count,
            "change": self._change,
            "undo": self._undo,
        }
        self.widget.on_msg(guarded(self._hear, self._fail))
        self._send_first()

    def _hear(self, _: Any, content: dict[str, Any], __: Any) -> None:
        action = self._actions.get(content.get("kind", ""))
        if action is not None:
            action(content)

    def _send(self, kind: str, buffers: Sequence[bytes] = (), **content: Any) -> None:
        self.widget.send({"kind": kind, **content}, list(buffers))

    def _fail(self, message: str) -> None:
        self._send("error", html=message)

    def _show(self, chosen: Row | None) -> None:
        """Show the report as it is now; the same file stays chosen."""
        files = [(row.dataset, row.file) for row in self._report.rows]
        key = (chosen.dataset, chosen.file) if chosen else None
        with self.widget.hold_sync():
            self._turn += 1
            self.widget.first = []
            self.widget.table = self._table()
            self.widget.selected = files.index(key) if key in files else -1

    def _table(self) -> dict[str, Any]:
        return {
            "rows": page_rows(self._report, self._unused_captions()),
            "buckets": [bucket_head(), *bucket_rows(buckets(self._report, self._config))],
            "summary": clean(self._report.summary()),
            "editable": self._captions is not None,
            "edits": self._edits,
            "turn": self._turn,
        }

    @property
    def _edits(self) -> int:
        return self._captions.edits if self._captions is not None else 0

    def _unused_captions(self) -> dict[int, list[str]]:
        """The captions of files that are dropped for something else, by number of the row."""
        if self._captions is None:
            return {}
        return {
            number: list(self._captions.captions(row, self._captions.read(row).text))
            for number, row in enumerate(self._report.rows)
            if not row.samples and "caption" not in row.cause and not self._captions.why_fixed(row)
        }

    def _rows(self, numbers: Iterable[Any]) -> list[tuple[int, Row]]:
        rows = self._report.rows
        return [(n, rows[n]) for n in numbers if isinstance(n, int) and 0 <= n < len(rows)]

    # Pictures --------------------------------------------------------------------------------------------------

    def _send_first(self) -> None:
        """Send the first pictures together, once they are all made."""
        report = self._report

        def send() -> None:
            made = [self.pictures.made("picture", row) for row in report.rows[:FIRST_PICTURES]]
            if self._report is report:
                self.widget.first = made

        self.pictures.in_thread(send)

    def _send_pictures(self, content: dict[str, Any]) -> None:
        self.pictures.ask("picture", self._rows(content["rows"]), self._deliver("picture"))

    def _send_videos(self, content: dict[str, Any]) -> None:
        self.pictures.ask("video", self._rows(content["rows"]), self._deliver("video"))

    def _deliver(self, kind: str) -> Callable[[int, bytes], None]:
        turn = self._turn
        return lambda number, data: self._send(kind, [data], row=number, turn=turn)

    # Captions --------------------------------------------------------------------------------------------------

    def _open(self, content: dict[str, Any]) -> None:
        """Send the caption file of a clip, or its captions and why they cannot be edited."""
        for number, row in self._rows([content["row"]]):
            why = self._captions.why_fixed(row) if self._captions else text("dataset.needs_config")
            if self._captions is None or why:
                given = "\n".join(row.sample.captions) if row.sample else ""
                self._send("caption", row=number, text=given, version="", fixed=clean(why), file="")
            else:
                self._send_caption("caption", number, self._captions.read(row))

    def _send_caption(self, kind: str, number: int, found: Any, **more: Any) -> None:
        dataset = self._report.rows[number].dataset
        joined = any(one.id == dataset and one.disable_multiline_split for one in self._config_datasets())
        self._send(
            kind,
            row=number,
            text=found.text,
            version=found.version,
            fixed="",
            file=clean(found.file.name),
            joined=joined,
            edits=self._edits,
            **more,
        )

    def _config_datasets(self) -> Sequence[Any]:
        return self._config.datasets if self._config is not None else ()

    def _save(self, content: dict[str, Any]) -> None:
        """Write what stands in the editor, unless somebody else has changed the file since it was opened."""
        for number, row in self._rows([content["row"]]):
            files = self._editable()
            if why := files.why_fixed(row):
                raise tk.DatasetError(why)
            found = files.read(row)
            # A second save can be on its way before the page knows what the first one wrote.
            if found.version not in (content["version"], self._saved.get(found.file)):
                self._send_caption("conflict", number, found)
                return
            written = files.write(row, content["text"], found.version)
            self._saved[written.file] = written.version
            self._send_caption("saved", number, written, sent=content["text"])
            self._look_again_soon()

    def _editable(self) -> Any:
        if self._captions is None:
            raise ValueError(text("dataset.needs_config"))
        return self._captions

    def _changes(self, content: dict[str, Any]) -> list[Any]:
        rows = [row for _, row in self._rows(content["rows"])]
        if content["tool"] == "prefix":
            return self._editable().prefixes(rows, content["words"])
        return self._editable().replacements(
            rows, content["words"], content.get("replacement", ""), match_case=bool(content.get("match_case"))
        )

    def _count(self, content: dict[str, Any]) -> None:
        """Say what a change would do, before it is done."""
        changes = self._changes(content)
        self._send(
            "count",
            tool=content["tool"],
            ticket=content.get("ticket"),
            files=len(changes),
            places=sum(change.places for change in changes),
            example=[changes[0].before.text, changes[0].text] if changes else [],
        )

    def _change(self, content: dict[str, Any]) -> None:
        written = self._editable().apply(self._changes(content))
        self._send("changed", files=len(written), edits=self._edits)
        self._look_again_soon()

    def _undo(self, _: dict[str, Any]) -> None:
        undone = self._editable().undo()
        kept = [clean(file.name) for file in undone.kept]
        self._send("undone", files=[clean(file.name) for file in undone.restored], kept=kept, edits=self._edits)
        self._look_again_soon()

    def _look_again_soon(self) -> None:
        """Decide anew in a thread; edits that come meanwhile are taken together."""
        if not self._outdated.is_set():
            self._outdated.set()
            threading.Thread(target=guarded(self._look_again_once, self._fail), daemon=True).start()

    def _look_again_once(self) -> None:
        self._outdated.clear()
        self.look_again()


def _caption_files(config: tk.TrainConfig) -> Any:
    return tk.CaptionFiles(config)
