// A board of videos, rows by columns. A video is asked of Python when its place comes into sight.

const SPEEDS = [0.25, 0.5, 1, 2];

class Gallery {
  constructor(model, el) {
    this.model = model;
    this.words = model.get("words");
    this.clips = new Clips(model);
    this.clock = new Clock(() => this.showClock());
    this.line = 50; // percent, between left and right of a comparison
    this.slots = new Map(); // element -> what is done when it comes into sight or leaves
    this.observer = new IntersectionObserver(
      (entries) => entries.forEach((entry) => this.slots.get(entry.target)?.(entry.isIntersecting)),
      { rootMargin: "80px" },
    );
    // JupyterLab would take the keys for its own commands.
    this.root = make("div", { class: "tk-gallery", tabindex: 0, "data-lm-suppress-shortcuts": "true" });
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.notice = make("div", { class: "tk-notice", role: "alert" });
    this.columns = make("div", { class: "tk-columns", role: "group", "aria-label": this.words.columns });
    this.rows = make("div", { class: "tk-rows" });
    this.root.append(this.bar(), this.columns, this.notice, this.rows);
    el.append(this.root);
    this.events = [
      ["change:board", () => this.build()],
      ["change:shown", () => this.build()],
      ["change:wipe", () => this.build()],
      ["change:notice", () => this.showNotice()],
      ["msg:custom", (message, buffers) => this.clips.receive(message, buffers)],
    ];
    this.events.forEach(([name, handler]) => model.on(name, handler));
    this.showNotice();
    this.build();
  }

  close() {
    this.events.forEach(([name, handler]) => this.model.off(name, handler));
    clearInterval(this.clock.timer);
    this.observer.disconnect();
    this.clips.keep(new Set());
  }

  // The bar ----------------------------------------------------------------------------------------------------

  bar() {
    const words = this.words;
    this.playButton = button("play", words.play, () => this.toggle(), { class: "tk-play" });
    this.scrub = make("input", {
      type: "range", min: 0, max: 0, step: 1, value: 0, class: "tk-scrub", "aria-label": words.scrub,
      oninput: () => this.clock.seek(Number(this.scrub.value)),
    });
    this.readout = make("output", { class: "tk-readout" });
    const speed = make(
      "select",
      { "aria-label": words.speed, title: words.speed, onchange: () => this.clock.setSpeed(Number(speed.value)) },
      ...SPEEDS.map((value) => make("option", { value, selected: value === 1 }, `${value}×`)),
    );
    const step = (name, count) => button(name, words[name], () => this.clock.seek(this.clock.frame + count));
    return make(
      "div",
      { class: "tk-bar", role: "toolbar", title: words.keys },
      this.playButton, step("back", -1), step("forward", 1), this.scrub, this.readout, speed,
      button("refresh", words.refresh, () => this.model.send({ ask: "refresh" })),
    );
  }

  toggle() {
    if (this.clock.playing) this.clock.pause();
    else this.clock.play();
  }

  showClock() {
    const { frame, frames, playing } = this.clock;
    const label = playing ? this.words.pause : this.words.play;
    if (this.playButton.title !== label) setIcon(this.playButton, playing ? "pause" : "play", label);
    this.scrub.max = frames - 1;
    this.scrub.value = frame;
    const values = { frame: frame + 1, frames, seconds: (frame / this.clock.fps).toFixed(2) };
    const line = this.words.frame.replace(/\{(\w+)\}/g, (_, name) => values[name]);
    this.readout.textContent = this.clock.players.size ? line : "";
    this.scrub.setAttribute("aria-valuetext", line);
  }

  key(event) {
    if (event.target.matches("select, input") || event.ctrlKey || event.altKey || event.metaKey) return;
    const clock = this.clock;
    const actions = {
      ArrowLeft: () => clock.seek(clock.frame - 1), ArrowRight: () => clock.seek(clock.frame + 1),
      Home: () => clock.seek(0), End: () => clock.seek(clock.frames - 1),
    };
    if (!event.target.matches("button")) actions[" "] = () => this.toggle();
    if (!actions[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    actions[event.key]();
  }

  showNotice() {
    this.notice.innerHTML = this.model.get("notice"); // made by Python, every value in it escaped
  }

  // The board --------------------------------------------------------------------------------------------------

  build() {
    const board = this.model.get("board");
    const shown = new Set(this.model.get("shown"));
    const columns = (board.columns ?? []).filter((column) => shown.has(column.id));
    const unmuted = [...this.clock.players].find((player) => !player.video.muted)?.key;
    this.observer.disconnect();
    this.slots.clear();
    this.clock.players.clear();
    this.used = new Set();
    this.columns.replaceChildren(...(board.columns ?? []).map((column) => this.chip(column, shown)));
    const rows = (board.rows ?? []).map((row) => this.row(row, columns, board.columns));
    this.rows.replaceChildren(...(rows.length ? rows : [make("p", {}, this.words.none)]));
    this.clips.keep(this.used);
    this.unmutedKey = unmuted;
    this.showClock();
  }

  chip(column, shown) {
    const pressed = shown.has(column.id);
    const flip = () => {
      if (pressed) shown.delete(column.id);
      else shown.add(column.id);
      this.model.set("shown", this.model.get("board").columns.map((one) => one.id).filter((id) => shown.has(id)));
      this.model.save_changes();
    };
    return make("button", { type: "button", class: "tk-chip", "aria-pressed": String(pressed), onclick: flip }, column.title);
  }

  row(row, columns, all) {
    const wipe = this.model.get("wipe");
    const open = wipe.row === row.id;
    const cells = columns.map((column) => this.cell(row, column));
    const head = make(
      "div", { class: "tk-head" },
      row.image ? this.firstFrame(row) : null,
      make(
        "div", { class: "tk-words" },
        make("div", { class: "tk-prompt" }, row.title),
        make("div", { class: "tk-details" }, [row.name, row.details].filter(Boolean).join(" · ")),
        row.same ? make("span", { class: "tk-badge tk-good" }, row.same) : null,
        row.different ? make("span", { class: "tk-badge tk-odd" }, row.different) : null,
        row.image_name ? make("span", { class: "tk-badge" }, `${this.words.first_frame}: ${row.image_name}`) : null,
      ),
    );
    const ids = all.map((column) => column.id).filter((id) => row.cells[id]);
    const last = ids.filter((id) => !all.find((column) => column.id === id).ema).pop();
    const right = last === ids[0] ? ids[ids.length - 1] : last ?? ids[ids.length - 1];
    const choice = () => this.setWipe(open ? {} : { row: row.id, left: ids[0], right });
    const label = open ? this.words.close : this.words.compare;
    if (ids.length > 1) head.append(make("button", { type: "button", class: "tk-compare", "aria-expanded": String(open), onclick: choice }, label));
    const grid = make("div", { class: "tk-cells", style: `--tk-columns:${Math.max(1, cells.length)}` }, ...cells);
    const shape = `--tk-aspect:${row.size[0] / row.size[1]}`;
    const element = make("section", { class: "tk-row", style: shape, "aria-label": row.title }, head, grid);
    if (open && row.cells[wipe.left] && row.cells[wipe.right]) grid.before(this.wipePanel(row, all, wipe));
    return element;
  }

  firstFrame(row) {
    const image = make("img", { class: "tk-first", alt: this.words.first_frame, title: this.words.first_frame });
    this.clips.image(row.id, (blob) => {
      const url = URL.createObjectURL(blob);
      image.onload = () => URL.revokeObjectURL(url);
      image.src = url;
    });
    return image;
  }

  cell(row, column) {
    const key = row.cells[column.id];
    const title = make("span", { class: "tk-title" }, column.title);
    const caption = make("figcaption", {}, title);
    if (!key) return make("figure", { class: "tk-cell" }, make("div", { class: "tk-empty" }, this.words.absent), caption);
    const frame = this.frame(key, `${column.title}: ${row.title}`, (clip, player) => {
      if (clip.sound) caption.append(this.soundButton(player));
      caption.append(button("download", this.words.download, () => make("a", { href: clip.url, download: clip.name }).click()));
    });
    return make("figure", { class: "tk-cell" }, frame, caption);
  }

  // A place for a video, which is asked for when it comes into sight and joins the clock when it is there.
  frame(key, label, ready = () => {}) {
    const video = make("video", { playsinline: true, "aria-label": label, preload: "auto" });
    video.muted = true;
    const state = make("div", { class: "tk-state" });
    const frame = make("div", { class: "tk-frame" }, video, state);
    const player = { video, key, visible: false };
    this.used.add(key);
    const load = async () => {
      state.textContent = this.words.loading;
      try {
        const clip = await this.clips.get(key);
        player.clip = clip;
        player.length = clip.frames / clip.fps;
        video.onerror = () => (state.textContent = this.words.unplayable);
        video.onloadeddata = () => state.remove();
        video.onloadedmetadata = () => {
          if (!frame.isConnected) return;
          video.muted = key !== this.unmutedKey;
          this.clock.add(player);
          ready(clip, player);
        };
        video.src = clip.url;
      } catch (error) {
        state.textContent = error.message;
        state.classList.add("tk-failed");
      }
    };
    let asked = false;
    this.slots.set(frame, (visible) => {
      if (visible && !asked) {
        asked = true;
        load();
      }
      if (this.clock.players.has(player)) this.clock.seen(player, visible);
      else player.visible = visible;
    });
    this.observer.observe(frame);
    return frame;
  }

  soundButton(player) {
    const control = button("silent", this.words.unmute, () => {
      const loud = player.video.muted;
      this.clock.players.forEach((one) => (one.video.muted = true));
      player.video.muted = !loud;
      this.unmutedKey = loud ? player.key : undefined;
    }, { class: "tk-sound" });
    const show = () => {
      const muted = player.video.muted;
      setIcon(control, muted ? "silent" : "loud", muted ? this.words.unmute : this.words.mute);
    };
    player.video.addEventListener("volumechange", show);
    show();
    return control;
  }

  // Two columns over each other --------------------------------------------------------------------------------

  setWipe(wipe) {
    this.model.set("wipe", wipe);
    this.model.save_changes();
  }

  wipePanel(row, all, wipe) {
    const titles = Object.fromEntries(all.map((column) => [column.id, column.title]));
    const sides = ["left", "right"].map((side) => this.frame(row.cells[wipe[side]], `${titles[wipe[side]]}: ${row.title}`));
    const choose = (side) => {
      const options = all.filter((column) => row.cells[column.id]);
      const select = make(
        "select",
        { "aria-label": this.words[side], onchange: () => this.setWipe({ ...wipe, [side]: select.value }) },
        ...options.map((column) => make("option", { value: column.id, selected: column.id === wipe[side] }, column.title)),
      );
      return make("label", { class: `tk-side-${side}` }, this.words[side], " ", select);
    };
    const stage = make("div", { class: "tk-stage" }, ...sides, make("div", { class: "tk-line" }));
    const slider = make("input", {
      type: "range", min: 0, max: 100, step: 0.5, value: this.line, "aria-label": this.words.wipe,
      oninput: () => place(),
    });
    const place = () => {
      this.line = Number(slider.value);
      stage.style.setProperty("--tk-wipe", `${this.line}%`);
    };
    place();
    const drag = (event) => {
      if (!event.buttons) return;
      const box = stage.getBoundingClientRect();
      slider.value = (100 * (event.clientX - box.left)) / box.width;
      place();
    };
    stage.addEventListener("pointerdown", drag);
    stage.addEventListener("pointermove", drag);
    sides[1].classList.add("tk-over");
    return make("div", { class: "tk-wipe" }, make("div", { class: "tk-sides" }, choose("left"), choose("right")), stage, slider);
  }
}

export default {
  render({ model, el }) {
    const gallery = new Gallery(model, el);
    return () => gallery.close();
  },
};
