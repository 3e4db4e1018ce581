// The chosen clip: what is used of it, and its captions in an editor.

const STAGE_HEIGHT = 160; // pixels

function makeEditor({ model, page, say, send, fileOf, setPicture, player, askVideos }) {
  const { chip, badges, timeline } = signs(say);
  const side = make("aside", "side", { aria: { label: say("caption") } });
  const stage = make("div", "stage");
  const marks = make("div", "marks");
  const facts = make("dl", "list");
  const title = make("h4", "title", { dir: "auto" });
  const close = make("button", "close", { type: "button", textContent: "×", title: say("close"), aria: { label: say("close") } });
  const area = make("textarea", "text", { rows: 6, dir: "auto", aria: { label: say("caption") } });
  area.dataset.lmSuppressShortcuts = "true";
  const help = make("p", "help");
  const state = make("span", "state", { aria: { live: "polite" } });
  const conflict = make("div", "conflict", { hidden: true, aria: { role: "alert" } });
  const labelled = make("label", "editor", {}, [make("span", "", { textContent: say("caption") }), area]);
  const chosen = make("div", "chosen", {}, [
    make("header", "", {}, [title, close]), stage, marks, labelled, conflict, state, help, facts,
  ]);
  const hint = make("p", "help", { textContent: say("choose") });
  side.append(hint, chosen);

  // `file` names the clip by its dataset and name, since its number may change when files are looked at again.
  const edited = { file: "", text: "", version: "", ready: false };
  const dirty = () => edited.ready && !area.readOnly && area.value !== edited.text;
  const numberOf = (file) => page.rows.findIndex((row) => fileOf(row) === file);

  function save(version = edited.version) {
    const number = numberOf(edited.file);
    if (dirty() && number >= 0) send("save", { row: number, text: area.value, version });
  }

  function showState() {
    const lines = area.value.split("\n").filter((line) => line.trim()).length;
    const captions = say("caption_count", { count: edited.joined ? Math.min(1, lines) : lines });
    state.textContent = edited.ready && !area.readOnly ? `${captions} · ${say(dirty() ? "unsaved" : "saved")}` : "";
  }

  function select() {
    const row = page.rows[model.get("selected")];
    if (row && fileOf(row) === edited.file) return showFacts(row);
    save(); // of the clip that was chosen before
    Object.assign(edited, { file: row ? fileOf(row) : "", ready: false, text: "", version: "" });
    hint.hidden = !!row;
    chosen.hidden = !row;
    conflict.hidden = true;
    area.value = "";
    area.readOnly = true;
    help.textContent = state.textContent = "";
    if (!row) return undefined;
    showFacts(row);
    side.scrollTop = 0;
    return send("open", { row: model.get("selected") });
  }

  function showFacts(row) {
    title.textContent = row.name;
    marks.replaceChildren(chip(row), ...badges(row));
    const lines = row.used ? [] : [[say("reason"), [row.reason]], [say("fix"), [row.fix]]];
    lines.push([say("found_head"), [row.found]]);
    if (row.used) {
      const values = { frames: row.frames, windows: row.windows, fps: +row.fps.toFixed(3), seconds: row.seconds.toFixed(2) };
      const taken = !row.spans.length ? "taken_still" : row.windows > 1 ? "taken_windows" : "taken_frames";
      const [[width, height], [x, y], [whole_width, whole_height]] = [row.size, row.crop, row.resized];
      lines.push([say("taken"), [say(taken, values)]]);
      lines.push(["", [say("box", { width, height, x, y, whole_width, whole_height })]]);
      const spans = row.spans.map(([start, end]) => `${start.toFixed(2)}–${end.toFixed(2)}`).join(", ");
      if (spans) lines.push(["", [say("span", { spans, length: row.length.toFixed(2) })]]);
      lines.push([say("bucket"), [row.bucket]]);
    }
    if (row.used) lines.push([say("reason"), [row.reason]]);
    facts.replaceChildren(...lines.map(([label, content]) =>
      make("div", "line", {}, [make("dt", "", { textContent: label }), make("dd", "", { dir: "auto" }, content)]),
    ));
    showStage(row);
  }

  // The whole picture as it is scaled, and in it the box that is trained on.
  function showStage(row) {
    const number = model.get("selected");
    const box = make("div", "box");
    const whole = make("div", "whole", {}, [box]);
    if (row.used) {
      const [width, height] = row.resized;
      whole.style.aspectRatio = `${width} / ${height}`;
      whole.style.maxWidth = `${(STAGE_HEIGHT * width) / height}px`;
      const share = { left: row.crop[0] / width, top: row.crop[1] / height, width: row.size[0] / width, height: row.size[1] / height };
      for (const [side_, value] of Object.entries(share)) box.style[side_] = `${100 * value}%`;
    }
    whole.classList.toggle("tk-data-unused", !row.used);
    setPicture(box, number);
    const video = player(number);
    if (video) box.append(Object.assign(video, { controls: true }));
    stage.replaceChildren(whole, ...(row.spans?.length ? [timeline(row)] : []));
    if (!video) askVideos();
  }

  function showPicture(number) {
    const box = stage.querySelector(".tk-data-box");
    if (box && number === model.get("selected")) setPicture(box, number);
  }

  function take(message) {
    const row = page.rows[message.row];
    if (!row || fileOf(row) !== edited.file) return;
    Object.assign(edited, { text: message.text, version: message.version, joined: message.joined, ready: true });
    area.value = message.text;
    area.readOnly = !!message.fixed;
    conflict.hidden = true;
    help.textContent = message.fixed
      ? say("fixed", { why: message.fixed })
      : say(message.joined ? "caption_joined" : "caption_help");
    showState();
  }

  function clash(message) {
    const mine = make("button", "button", { type: "button", textContent: say("overwrite") });
    const theirs = make("button", "button", { type: "button", textContent: say("take_disk") });
    mine.addEventListener("click", () => save(message.version));
    theirs.addEventListener("click", () => take(message));
    conflict.replaceChildren(
      make("p", "", { textContent: say("conflict", { file: message.file }) }),
      make("pre", "", { textContent: message.text, dir: "auto" }), theirs, mine,
    );
    conflict.hidden = false;
  }

  function saved(message) {
    const row = page.rows[message.row];
    // What was typed since it was sent stays, and is saved by itself.
    if (row && fileOf(row) === edited.file && area.value !== message.sent) {
      Object.assign(edited, { text: message.text, version: message.version });
      showState();
    } else take(message);
  }

  // After the table has changed: what stands in the file may have, too.
  function refresh() {
    select();
    if (edited.file && !dirty() && document.activeElement !== area) send("open", { row: numberOf(edited.file) });
  }

  area.addEventListener("input", showState);
  area.addEventListener("blur", () => conflict.hidden && save());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation();
      save();
    }
  });
  close.addEventListener("click", () => {
    model.set("selected", -1);
    model.save_changes();
  });

  return {
    node: side, select, save, saved, refresh, clash, showPicture, showFacts,
    take: (message) => dirty() || take(message),
  };
}
