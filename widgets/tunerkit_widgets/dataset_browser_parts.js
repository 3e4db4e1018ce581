// Parts that the dataset browser is made of. Text from files is only ever set as text, never as HTML.

function make(tag, name = "", props = {}, children = []) {
  const { aria = {}, ...rest } = props;
  const node = Object.assign(document.createElement(tag), rest);
  if (name) node.className = `tk-data-${name}`;
  for (const [key, value] of Object.entries(aria)) node.setAttribute(key === "role" ? key : `aria-${key}`, value);
  node.append(...children);
  return node;
}

function later(action, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), milliseconds);
  };
}

// Addresses of bytes that the kernel has sent, the ones used last.
function store(limit, type) {
  const urls = new Map();
  return {
    get(key) {
      const url = urls.get(key);
      if (url !== undefined) {
        urls.delete(key);
        urls.set(key, url);
      }
      return url;
    },
    set(key, bytes) {
      const url = bytes.byteLength ? URL.createObjectURL(new Blob([bytes], { type })) : "";
      if (urls.get(key)) URL.revokeObjectURL(urls.get(key));
      urls.set(key, url);
      for (const [oldest, address] of urls) {
        if (urls.size <= limit) break;
        if (address) URL.revokeObjectURL(address);
        urls.delete(oldest);
      }
      return url;
    },
    clear() {
      for (const url of urls.values()) if (url) URL.revokeObjectURL(url);
      urls.clear();
    },
  };
}

// The small signs of a row: chip, badges and time bar.
function signs(say) {
  const chip = (row) =>
    make("span", `chip tk-data-${row.used ? "used" : "dropped"}`, { textContent: say(row.used ? "used" : "dropped") });
  const badges = (row) => [
    ...row.badges.map((key) => say(key.split(".")[1])),
    ...(row.uncaptioned ? [say("badge_uncaptioned")] : []),
    ...(row.captions.length > 1 ? [say("badge_captions", { count: row.captions.length })] : []),
  ].map((label) => make("span", "badge", { textContent: label }));

  // Which part of the clip is used.
  function timeline(row) {
    const part = (seconds) => `${(100 * Math.min(1, Math.max(0, seconds / (row.length || 1)))).toFixed(2)}%`;
    return make("div", "time", {}, row.spans.map(([start, end]) => {
      const bar = make("i");
      bar.style.left = part(start);
      bar.style.width = part(end - start);
      return bar;
    }));
  }

  return { chip, badges, timeline };
}
