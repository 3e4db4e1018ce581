// The videos of a gallery and the clock of their players. `gallery.js` is put behind this: together they are one module.

const AT_ONCE = 2; // clips asked for at the same time
const TICK_MS = 60;
const HOLD = 0.15; // seconds: the leader waits for players that are further behind,
const RELEASE = 0.06; // until they are as near as that,
const PATIENCE = 1.5; // or it has waited so long; then they are set to its time

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

// Outlines in a square of 16 by 16: not every machine has a font with such signs.
const ICONS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z",
  back: "M11 2.5v11L4.5 8z",
  forward: "M5 2.5v11L11.5 8z",
  refresh: "M13.5 2v4.5H9l1.8-1.8A4 4 0 1 0 12 8h1.5A5.5 5.5 0 1 1 11.9 3.6z",
  download: "M7.2 2h1.6v5.6h2.7L8 11.4 4.5 7.6h2.7zM3 12.4h10V14H3z",
  silent: "M2 6h2.5L8 3v10l-3.5-3H2zM10 6.1l1-1 1.8 1.9L14.6 5.1l1 1L13.8 8l1.8 1.9-1 1-1.8-1.9-1.8 1.9-1-1L11.8 8z",
  loud: "M2 6h2.5L8 3v10l-3.5-3H2zM9.8 5.1a4 4 0 0 1 0 5.8l-.9-1.1a2.6 2.6 0 0 0 0-3.6zM11.6 3a7 7 0 0 1 0 10l-.9-1.1a5.6 5.6 0 0 0 0-7.8z",
};

function setIcon(control, name, label) {
  const path = `<path d="${ICONS[name]}" fill="currentColor"/>`;
  control.innerHTML = `<svg viewBox="0 0 16 16" width="15" height="15" aria-hidden="true">${path}</svg>`;
  control.title = label;
  control.setAttribute("aria-label", label);
}

function button(name, label, onclick, attributes = {}) {
  const control = make("button", { type: "button", onclick, ...attributes });
  setIcon(control, name, label);
  return control;
}

// Clips by key: asked of Python once, kept as blob addresses while a player uses them.
class Clips {
  constructor(model) {
    this.model = model;
    this.clips = new Map();
    this.waiting = [];
    this.asked = new Map();
    this.images = new Map();
  }

  get(key) {
    if (!this.clips.has(key)) {
      const promise = new Promise((resolve, reject) => this.waiting.push({ key, resolve, reject }));
      this.clips.set(key, { promise });
      this.next();
    }
    return this.clips.get(key).promise;
  }

  next() {
    while (this.asked.size < AT_ONCE && this.waiting.length) {
      const request = this.waiting.shift();
      this.asked.set(request.key, request);
      this.model.send({ ask: "clip", key: request.key });
    }
  }

  image(row, show) {
    this.images.set(row, show);
    this.model.send({ ask: "image", key: row });
  }

  receive(message, buffers) {
    if (message.image !== undefined) {
      this.images.get(message.image)?.(new Blob([buffers[0]], { type: "image/png" }));
      return;
    }
    const key = message.clip ?? message.failed;
    const request = this.asked.get(key);
    if (!request) return; // of another view of this gallery
    this.asked.delete(key);
    if (message.failed !== undefined) {
      this.clips.delete(key);
      request.reject(new Error(message.message));
    } else {
      const url = URL.createObjectURL(new Blob([buffers[0]], { type: "video/mp4" }));
      const clip = { ...message, url };
      this.clips.get(key).url = url;
      request.resolve(clip);
    }
    this.next();
  }

  keep(keys) {
    for (const [key, clip] of this.clips) {
      if (keys.has(key)) continue;
      if (clip.url) URL.revokeObjectURL(clip.url);
      else if (this.asked.has(key)) continue; // on its way; dropped next time
      this.waiting = this.waiting.filter((request) => request.key !== key);
      this.clips.delete(key);
    }
  }
}

// Where all players are: a frame number while they stand, the leading player's time while they run.
class Clock {
  constructor(changed) {
    this.players = new Set();
    this.frame = 0;
    this.speed = 1;
    this.playing = false;
    this.waited = 0; // seconds that the leader has waited for others
    this.changed = changed;
    this.timer = setInterval(() => this.tick(), TICK_MS);
  }

  get fps() {
    return Math.max(1, ...[...this.players].map((player) => player.clip.fps));
  }

  get frames() {
    return Math.max(1, ...[...this.players].map((player) => Math.round((player.clip.frames / player.clip.fps) * this.fps)));
  }

  // The middle of the frame: at its edge, browsers differ in which picture they show.
  get time() {
    return (this.frame + 0.5) / this.fps;
  }

  get leader() {
    const running = [...this.players].filter((player) => player.visible);
    running.sort((a, b) => a.video.muted - b.video.muted || b.length - a.length);
    return running[0];
  }

  add(player) {
    this.players.add(player);
    this.place(player);
    if (this.playing) this.start(player);
    this.changed();
  }

  place(player) {
    player.video.currentTime = Math.min(this.time, player.length - 0.5 / player.clip.fps);
  }

  start(player) {
    if (!player.visible) return;
    player.video.playbackRate = this.speed;
    player.video.play().catch(() => {}); // paused again before it began
  }

  seek(frame) {
    this.pause();
    this.frame = Math.max(0, Math.min(Math.round(frame), this.frames - 1));
    this.players.forEach((player) => this.place(player));
    this.changed();
  }

  play() {
    if (this.frame >= this.frames - 1) this.frame = 0;
    this.playing = true;
    this.waited = 0;
    for (const player of this.players) {
      this.place(player);
      this.start(player);
    }
    this.changed();
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    for (const player of this.players) {
      player.video.pause();
      this.place(player);
    }
    this.changed();
  }

  setSpeed(speed) {
    this.speed = speed;
    this.players.forEach((player) => (player.video.playbackRate = speed));
  }

  seen(player, visible) {
    if (player.visible === visible) return;
    player.visible = visible;
    if (!this.playing) return;
    if (visible) {
      this.place(player);
      this.start(player);
    } else {
      player.video.pause();
    }
  }

  tick() {
    const leader = this.playing && this.leader;
    if (!leader) return;
    const now = leader.video.currentTime;
    this.frame = Math.min(Math.floor(now * this.fps), this.frames - 1);
    if (leader.video.ended) {
      this.frame = 0;
      this.play();
      return;
    }
    const others = [...this.players].filter(
      (player) => player !== leader && player.visible && now < player.length,
    );
    const lags = others.map(({ video }) => (video.seeking || video.readyState < 2 ? Infinity : now - video.currentTime));
    const lag = Math.max(0, ...lags);
    others.forEach((player) => this.follow(player, now));
    this.lead(leader, lag);
    this.changed();
  }

  // A busy machine shows fewer pictures, but all players the same one. A sound that is heard is not interrupted.
  lead(leader, lag) {
    leader.video.playbackRate = this.speed;
    if (leader.video.muted && this.waited < PATIENCE && lag > (this.waited ? RELEASE : HOLD)) {
      this.waited += TICK_MS / 1000;
      leader.video.pause();
      return;
    }
    this.waited = 0;
    if (leader.video.paused) this.start(leader);
  }

  follow(player, now) {
    const video = player.video;
    if (video.seeking) return;
    const drift = now - video.currentTime;
    const late = drift > HOLD && (this.waited >= PATIENCE || drift > PATIENCE);
    if (late || drift < -PATIENCE) video.currentTime = now;
    else video.playbackRate = this.speed * (Math.abs(drift) < 0.5 / this.fps ? 1 : 1 + Math.max(drift, -0.5));
    if (drift < -RELEASE) video.pause(); // ahead: to wait is cheaper than to seek
    else if (video.paused) video.play().catch(() => {});
  }
}
