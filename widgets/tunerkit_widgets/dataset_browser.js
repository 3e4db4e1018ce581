// The page's side of the dataset browser. Only the cells in view are in the page, and only their pictures are sent.

const CELL = { width: 168, height: 182, gap: 8 };
const OVERSCAN = 1; // rows of cells above and below the view
const KEPT_PICTURES = 600;
const KEPT_VIDEOS = 16;
const HOVER_MS = 180;
const TYPING_MS = 200;

function render({ model, el }) {
  const words = model.get("words");
  const say = (key, values = {}) => (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
  const send = (kind, content = {}) => model.send({ kind, ...content });
  const pictures = store(KEPT_PICTURES, "image/jpeg");
  const videos = store(KEPT_VIDEOS, "video/mp4");
  const page = { rows: [], shown: [], active: 0, hovered: -1, cells: new Map(), columns: 1 };
  const keyOf = (row) => JSON.stringify([row.dataset, row.name, row.used, row.size, row.crop, row.spans]);
  const fileOf = (row) => JSON.stringify([row.dataset, row.name]);
  const { chip, badges, timeline } = signs(say);
  const editor = makeEditor({ model, page, say, send, fileOf, setPicture, player, askVideos });
  const tools = makeTools({ page, say, send });

  // Filters ------------------------------------------------------------------------------------------------------

  const pick = (label) => make("select", "pick", { title: label, aria: { label } });
  const search = make("input", "search", {
    type: "search", placeholder: `${say("search")}: ${say("search_hint")}`, aria: { label: say("search") },
  });
  const [show, dataset, bucket, sort] = ["show", "dataset", "bucket", "sort"].map((key) => pick(say(key)));
  const count = make("span", "count", { aria: { live: "polite" } });

  function offer(select, options) {
    const before = select.value;
    select.replaceChildren(...options.map(([value, label]) => make("option", "", { value, textContent: label })));
    if (options.some(([value]) => value === before)) select.value = before;
  }

  const KINDS = {
    all: () => true,
    used: (row) => row.used,
    dropped: (row) => !row.used,
    uncaptioned: (row) => row.uncaptioned,
    several: (row) => row.captions.length > 1,
  };
  const collator = new Intl.Collator(undefined, { numeric: true });
  const byName = (a, b) => collator.compare(page.rows[a].name, page.rows[b].name);
  const ORDERS = {
    by_name: byName,
    // Files without a bucket come last.
    by_bucket: (a, b) =>
      Number(!page.rows[a].bucket) - Number(!page.rows[b].bucket) ||
      collator.compare(page.rows[a].bucket, page.rows[b].bucket) || byName(a, b),
    by_length: (a, b) => page.rows[b].length - page.rows[a].length || byName(a, b),
  };
  const folded = (text) => text.normalize("NFKC").toLowerCase();

  function filters() {
    const unique = (name) => [...new Set(page.rows.map((row) => row[name]).filter(Boolean))].sort(collator.compare);
    const kinds = Object.keys(KINDS).map((kind) => [kind, `${say(kind)} (${page.rows.filter(KINDS[kind]).length})`]);
    offer(show, kinds);
    offer(dataset, [["", say("every_dataset")], ...unique("dataset").map((name) => [name, name])]);
    offer(bucket, [["", say("every_bucket")], ...unique("bucket").map((name) => [name, name])]);
    offer(sort, Object.keys(ORDERS).map((order) => [order, `${say("sort")} ${say(order)}`]));
    dataset.hidden = unique("dataset").length < 2;
  }

  function filter() {
    const wanted = folded(search.value.trim());
    const fits = (row) =>
      KINDS[show.value](row) &&
      (!dataset.value || row.dataset === dataset.value) &&
      (!bucket.value || row.bucket === bucket.value) &&
      (!wanted || folded([row.name, row.reason, row.fix, ...row.captions].join("\n")).includes(wanted));
    page.shown = [...page.rows.keys()].filter((number) => fits(page.rows[number])).sort(ORDERS[sort.value]);
    page.active = Math.max(0, Math.min(page.active, page.shown.length - 1));
    count.textContent = say("shown", { shown: page.shown.length, total: page.rows.length });
    clearCells();
    draw();
    tools.count();
  }

  // The grid -----------------------------------------------------------------------------------------------------

  const space = make("div", "space");
  const grid = make("div", "grid", { aria: { role: "listbox", label: say("label") } }, [space]);
  // JupyterLab's own keys would move between notebook cells.
  grid.dataset.lmSuppressShortcuts = "true";

  function clearCells() {
    stopHover();
    page.cells.clear();
    space.replaceChildren();
    if (!page.shown.length) space.append(make("p", "empty", { textContent: say("none_shown") }));
  }

  function draw() {
    const width = grid.clientWidth;
    if (!width) return;
    const step = CELL.height + CELL.gap;
    page.columns = Math.max(1, Math.floor((width + CELL.gap) / (CELL.width + CELL.gap)));
    const cellWidth = (width - (page.columns - 1) * CELL.gap) / page.columns;
    space.style.height = `${Math.ceil(page.shown.length / page.columns) * step}px`;
    const from = Math.max(0, (Math.floor(grid.scrollTop / step) - OVERSCAN) * page.columns);
    const rowsInView = Math.ceil(grid.clientHeight / step) + 1;
    const to = Math.min(page.shown.length, from + (rowsInView + 2 * OVERSCAN) * page.columns);
    for (const [place, cell] of page.cells) {
      // The focused cell stays, so that the keyboard does not lose its place.
      if ((place < from || place >= to) && cell !== document.activeElement && place !== page.active) {
        cell.remove();
        page.cells.delete(place);
      }
    }
    for (let place = from; place < to; place++) {
      if (!page.cells.has(place)) {
        page.cells.set(place, newCell(place));
        space.append(page.cells.get(place));
      }
    }
    for (const [place, cell] of page.cells) {
      const [x, y] = [(place % page.columns) * (cellWidth + CELL.gap), Math.floor(place / page.columns) * step];
      cell.style.transform = `translate(${x}px, ${y}px)`;
      cell.style.width = `${cellWidth}px`;
      cell.tabIndex = place === page.active ? 0 : -1;
      cell.setAttribute("aria-selected", String(page.shown[place] === model.get("selected")));
    }
    askPictures();
  }

  const askPictures = later(() => {
    const rows = [...page.cells.keys()].sort((a, b) => a - b).map((place) => page.shown[place]);
    const missing = rows.filter((number) => pictures.get(keyOf(page.rows[number])) === undefined);
    if (missing.length) send("pictures", { rows: missing });
  }, 60);

  function newCell(place) {
    const number = page.shown[place];
    const row = page.rows[number];
    const thumb = make("div", "thumb");
    const name = make("div", "name", { textContent: row.name, dir: "auto" });
    const facts = make("div", "facts", {}, [chip(row), make("span", "", { textContent: row.bucket || row.cause })]);
    const caption = make("div", "words", { textContent: row.captions[0] ?? (row.used ? "" : row.reason), dir: "auto" });
    const label = [row.name, say(row.used ? "used" : "dropped"), row.bucket, row.reason, row.fix].filter(Boolean).join(", ");
    const cell = make("div", "cell", {
      title: [row.name, row.reason, row.fix, ...row.captions].filter(Boolean).join("\n"),
      aria: { role: "option", label, posinset: place + 1, setsize: page.shown.length },
    }, [thumb, name, facts, caption]);
    cell.dataset.place = place;
    cell.classList.toggle("tk-data-unused", !row.used);
    thumb.append(make("div", "badges", {}, badges(row)));
    if (row.spans?.length) thumb.append(timeline(row));
    setPicture(thumb, number);
    return cell;
  }

  function takePicture(number, bytes) {
    const key = keyOf(page.rows[number]);
    if (pictures.get(key) !== undefined) return;
    pictures.set(key, bytes);
    for (const [place, cell] of page.cells) {
      if (page.shown[place] === number) setPicture(cell.querySelector(".tk-data-thumb"), number);
    }
    editor.showPicture(number);
  }

  function setPicture(box, number) {
    const url = pictures.get(keyOf(page.rows[number]));
    if (url === undefined) return;
    box.querySelector("img, .tk-data-blank")?.remove();
    box.prepend(url ? make("img", "", { src: url, alt: "" }) : make("span", "blank", { textContent: say("no_picture") }));
  }

  function choose(place) {
    page.active = place;
    model.set("selected", page.shown[place]);
    model.save_changes();
    draw();
  }

  function move(place) {
    page.active = Math.max(0, Math.min(page.shown.length - 1, place));
    const step = CELL.height + CELL.gap;
    const top = Math.floor(page.active / page.columns) * step;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top + step > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + step - grid.clientHeight;
    draw();
    page.cells.get(page.active)?.focus({ preventScroll: true });
  }

  grid.addEventListener("keydown", (event) => {
    const inView = Math.max(1, Math.floor(grid.clientHeight / (CELL.height + CELL.gap))) * page.columns;
    const moves = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: page.columns, ArrowUp: -page.columns, PageDown: inView, PageUp: -inView,
      Home: -page.shown.length, End: page.shown.length,
    };
    if (event.key in moves) move(page.active + moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") choose(page.active);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const placeOf = (event) => Number(event.target.closest(".tk-data-cell")?.dataset.place ?? -1);
  grid.addEventListener("click", (event) => placeOf(event) >= 0 && choose(placeOf(event)));
  let drawing = 0;
  grid.addEventListener("scroll", () => {
    cancelAnimationFrame(drawing);
    drawing = requestAnimationFrame(draw);
  });

  // Previews: one plays at a time, in the cell under the pointer or with the focus ----------------------------------

  const playSoon = later(playHovered, HOVER_MS);

  function stopHover() {
    page.hovered = -1;
    space.querySelector("video")?.remove();
  }

  function hover(place) {
    if (place === page.hovered) return;
    stopHover();
    page.hovered = place;
    playSoon();
  }

  function player(number) {
    const url = videos.get(keyOf(page.rows[number]));
    const label = say("preview", { name: page.rows[number].name });
    const autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    return url && make("video", "", { src: url, muted: true, loop: true, autoplay, playsInline: true, aria: { label } });
  }

  function playHovered() {
    const number = page.shown[page.hovered];
    const thumb = page.cells.get(page.hovered)?.querySelector(".tk-data-thumb");
    if (!thumb || thumb.querySelector("video")) return;
    const video = player(number);
    if (video) thumb.append(video);
    else askVideos();
  }

  function askVideos() {
    const wanted = [page.shown[page.hovered], model.get("selected")].filter((number) => page.rows[number]?.spans?.length);
    const rows = [...new Set(wanted)].filter((number) => videos.get(keyOf(page.rows[number])) === undefined);
    if (rows.length) send("videos", { rows });
  }

  grid.addEventListener("pointerover", (event) => hover(placeOf(event)));
  grid.addEventListener("pointerleave", () => hover(-1));
  grid.addEventListener("focusin", (event) => hover(placeOf(event)));
  grid.addEventListener("focusout", () => hover(-1));

  // What happened ------------------------------------------------------------------------------------------------

  const notice = make("span", "notice", { aria: { live: "polite" } });
  const undo = make("button", "button", { type: "button" });
  const changed = make("div", "changed", { hidden: true }, [
    make("span", "", { textContent: say("changed"), aria: { role: "status" } }), undo, notice,
  ]);
  const fault = make("div", "fault", { hidden: true });
  undo.addEventListener("click", () => send("undo"));

  function edits(number, words_ = "") {
    if (words_) notice.textContent = words_;
    undo.textContent = number ? say("undo_count", { count: number }) : say("undo");
    undo.hidden = changed.firstChild.hidden = !number;
    changed.hidden = !number && !notice.textContent;
  }

  const buckets = make("details", "buckets", { open: true });
  function showBuckets([head, ...lines]) {
    const line = (cells, tag) => make("tr", "", {}, cells.map((cell) => make(tag, "", { textContent: cell })));
    const body = make("tbody", "", {}, lines.map((cells) => line(cells, "td")));
    buckets.replaceChildren(
      make("summary", "", { textContent: say("buckets") }),
      make("table", "", {}, [make("thead", "", {}, [line(head, "th")]), body]),
    );
  }

  function takeTable() {
    const table = model.get("table");
    page.rows = table.rows;
    takeFirst();
    filters();
    const scroll = grid.scrollTop;
    filter();
    grid.scrollTop = scroll;
    showBuckets(table.buckets);
    tools.node.hidden = !table.editable;
    edits(table.edits);
    editor.refresh();
  }

  function takeFirst() {
    model.get("first").forEach((bytes, number) => page.rows[number] && takePicture(number, bytes));
  }

  // Messages -----------------------------------------------------------------------------------------------------

  const got = {
    picture: (message, [bytes]) => takePicture(message.row, bytes),
    video(message, [bytes]) {
      videos.set(keyOf(page.rows[message.row]), bytes);
      if (page.shown[page.hovered] === message.row) playHovered();
      if (message.row === model.get("selected") && bytes.byteLength) editor.showFacts(page.rows[message.row]);
    },
    caption: editor.take,
    saved(message) {
      editor.saved(message);
      notice.textContent = "";
      edits(message.edits);
    },
    conflict: editor.clash,
    count: tools.showCount,
    changed: (message) => edits(message.edits, say("did_change", message)),
    undone(message) {
      const parts = [];
      if (message.files.length) parts.push(say("undone", { files: message.files.slice(0, 3).join(", ") + (message.files.length > 3 ? " …" : "") }));
      if (message.kept.length) parts.push(say("undo_kept", { files: message.kept.join(", ") }));
      edits(message.edits, parts.join(" "));
    },
    error(message) {
      fault.innerHTML = message.html; // escaped where it was made
      fault.hidden = false;
    },
  };

  function hear(message, buffers) {
    // Numbers of rows are those of the table that was shown when they were asked for.
    if (message.turn !== undefined && message.turn !== model.get("table").turn) return;
    if (message.kind !== "error") fault.hidden = true;
    got[message.kind]?.(message, buffers ?? []);
  }

  for (const input of [show, dataset, bucket, sort]) input.addEventListener("change", filter);
  search.addEventListener("input", later(filter, TYPING_MS));
  model.on("msg:custom", hear);
  model.on("change:table", takeTable);
  model.on("change:first", takeFirst);
  const chose = () => {
    editor.select();
    draw();
  };
  model.on("change:selected", chose);
  el.classList.add("tk-data");
  const bar = make("div", "bar", {}, [search, show, dataset, bucket, sort, count]);
  el.append(bar, make("div", "main", {}, [grid, editor.node]), changed, fault, tools.node, buckets);
  takeTable();
  const resized = new ResizeObserver(draw);
  resized.observe(grid);
  return () => {
    editor.save();
    resized.disconnect();
    model.off("msg:custom", hear);
    model.off("change:table", takeTable);
    model.off("change:first", takeFirst);
    model.off("change:selected", chose);
    pictures.clear();
    videos.clear();
  };
}

export default { render };
