// Making and changing what is on the page, by hand and only where it differs. What
// comes from nodes goes in as text, never as HTML.

export function h(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children.filter((c) => c !== "" && c !== null && c !== undefined));
  return e;
}

export function svg(tag, attributes = {}, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

export const text = (e, t) => { if (e.textContent !== t) e.textContent = t; };
export const set = (e, k, v) => { if (e.getAttribute(k) !== v) e.setAttribute(k, v); };
export const askFor = (e) => ["INPUT", "SELECT", "TEXTAREA"].includes(e.tagName);

// The hub's clock counts: this one's may be anything.
let ahead = 0;
export const clock = { set: (now) => { ahead = Date.parse(now) - Date.now(); }, now: () => Date.now() + ahead };

export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor((s % 86400) / 3600) + " h";
}

export const absolute = (t) => new Date(t).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

function relative(e) {
  const past = span(clock.now() - Date.parse(e.dateTime));
  return e.dataset.before + past + (e.dataset.ago ? " ago" : "");
}

// when is a time, told as how long ago it is; the hint has it whole.
export function when(t, before, ago) {
  const e = h("time", { datetime: t, title: absolute(t), class: "quiet" });
  e.dataset.before = before;
  if (ago) e.dataset.ago = "1";
  e.textContent = relative(e);
  return e;
}

export function tick() {
  for (const e of document.querySelectorAll("time[data-before]")) text(e, relative(e));
}

export function bytes(n) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (n < 1000) return (unit === "B" || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + unit;
    n /= 1000;
  }
  return n.toFixed(1) + " TB";
}
