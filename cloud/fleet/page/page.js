// The fleet's page: it asks the hub for documents (common/fleet), and shows them.
import { h, text, set, when, tick, clock, bytes, askFor } from "/dom.js";
import { api, token, Refused } from "/api.js";
import { showNode } from "/node.js";

const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
const fresh = document.getElementById("fresh");
const POLL = 3000;
let leave = () => {}; // ends what the present view does

// view is what a view is given: poll asks again and again until the view is left.
function view() {
  const ended = new AbortController();
  let timer, failures = 0, last = 0;
  leave();
  leave = () => { ended.abort(); clearTimeout(timer); };
  return {
    signal: ended.signal,
    poll(path, show) {
      let tag = "", busy = false;
      const again = async () => {
        clearTimeout(timer);
        if (ended.signal.aborted || busy) return;
        if (document.hidden && last) { timer = setTimeout(again, POLL); return; }
        busy = true;
        const asked = path();
        try {
          const answer = await api(asked, { tag: asked === again.asked ? tag : "", signal: ended.signal });
          if (ended.signal.aborted) return;
          if (asked !== path()) { busy = false; again(); return; }
          again.asked = asked;
          if (answer.document) { tag = answer.tag; show(answer.document); }
          failures = 0; last = Date.now();
          say("");
          main.classList.remove("stale");
        } catch (e) {
          if (ended.signal.aborted) return;
          if (e instanceof Refused && e.code === 401) { login(e.message); return; }
          failures++;
          const since = last ? " What is shown is from " + new Date(last).toLocaleTimeString() + "." : "";
          if (e instanceof Refused) {
            say(e.message + since);
            if (e.code === 404) main.replaceChildren(h("p", { class: "note" }, h("a", { href: "#/" }, "All nodes")));
          } else {
            say("cloudcore does not answer: see `systemctl status cloudcore` on the hub's machine, and your way to it. Trying again." + since);
          }
          main.classList.add("stale");
        }
        busy = false;
        timer = setTimeout(again, POLL * Math.min(1 + failures, 5));
        freshness();
      };
      const freshness = () => text(fresh, last ? (failures ? "not up to date" : "live") : "");
      document.addEventListener("visibilitychange", () => { if (!document.hidden) again(); }, { signal: ended.signal });
      again();
      return again;
    },
  };
}

function say(what) {
  trouble.hidden = !what;
  text(trouble, what);
}

function login(why) {
  leave();
  say("");
  text(fresh, "");
  document.getElementById("leave").hidden = true;
  const field = h("input", { type: "password", id: "token", autocomplete: "off", spellcheck: "false", required: "" });
  const form = h("form", { class: "ask" },
    h("h1", {}, "A token, please"),
    h("p", { id: "why" }, why),
    h("label", { for: "token" }, "Token"), field,
    h("button", { type: "submit" }, "Look at the fleet"),
    h("p", { class: "quiet" }, "On the hub's machine, ", h("code", {}, "sudo holdfast fleet"), " prints this page's address with a token in it. With kubectl, ",
      h("code", {}, "kubectl create token ACCOUNT"), " makes one for a service account that may list nodes; for logs and events it needs those rights, too."),
    h("p", { class: "quiet" }, "It is kept in this tab, and nowhere else."));
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    token.set(field.value.trim());
    route();
  });
  main.replaceChildren(form);
  field.focus();
}

// The fleet ---------------------------------------------------------------------

const COLUMNS = [
  ["name", "Node"], ["line", "Line"], ["offlineReady", "Offline-ready"], ["pods", "Pods", "num"], ["bytes", "Today", "num"],
  ["rtt", "Round trip", "num"], ["seen", "Last heard"], ["hub", "Hub"], ["version", "Version"],
];
const STATES = [["", "All", "all"], ["connected", "Connected", "connected"], ["offline", "Offline", "offline"], ["not-offline-ready", "Not offline-ready", "notOfflineReady"]];
const LIMIT = 100;

function showFleet(params) {
  document.title = "Fleet – Holdfast";
  const v = view();
  const q = { q: params.get("q") || "", state: params.get("state") || "", sort: params.get("sort") || "name", offset: Number(params.get("offset")) || 0 };
  const search = h("input", { type: "search", placeholder: "Name, hub, version, reason", "aria-label": "Filter nodes", value: q.q });
  const states = STATES.map(([state, label]) => h("button", { type: "button", "data-state": state }, label));
  const head = h("tr");
  for (const [key, label, kind] of COLUMNS) {
    const b = h("button", { type: "button" }, label);
    b.addEventListener("click", () => {
      // Quantities begin with the most.
      const first = ["pods", "bytes", "rtt", "seen"].includes(key) ? "-" + key : key;
      change({ sort: q.sort === first ? (first[0] === "-" ? key : "-" + key) : first, offset: 0 });
    });
    head.append(h("th", { scope: "col", "data-key": key, class: kind || "" }, b));
  }
  const body = h("tbody");
  const table = h("table", {}, h("caption", {}, "Edge nodes"), h("thead", {}, head), body);
  const empty = h("p", { class: "empty", hidden: "" });
  const where = h("span", { class: "quiet push" });
  const back = h("button", { type: "button" }, "Earlier"), on = h("button", { type: "button" }, "Further");
  back.addEventListener("click", () => change({ offset: Math.max(0, q.offset - LIMIT) }));
  on.addEventListener("click", () => change({ offset: q.offset + LIMIT }));
  for (const b of states) b.addEventListener("click", () => change({ state: b.dataset.state, offset: 0 }));
  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ q: search.value.trim(), offset: 0 }), 150);
  });
  main.replaceChildren(h("h1", { class: "unseen" }, "Edge nodes"), h("div", { class: "bar" }, search, h("div", { class: "bar", role: "group", "aria-label": "Show" }, ...states), where, back, on), h("div", { class: "wide" }, table, empty));

  const mark = () => {
    for (const b of states) set(b, "aria-pressed", String(b.dataset.state === q.state));
    for (const th of head.children) {
      const key = q.sort.replace(/^-/, "");
      set(th, "aria-sort", th.dataset.key === key ? (q.sort[0] === "-" ? "descending" : "ascending") : "none");
    }
  };
  const change = (to) => {
    Object.assign(q, to);
    const kept = new URLSearchParams();
    for (const k of ["q", "state", "offset"]) if (q[k]) kept.set(k, q[k]);
    if (q.sort !== "name") kept.set("sort", q.sort);
    history.replaceState(null, "", "#/" + (String(kept) && "?" + kept));
    mark();
    again();
  };
  mark();
  const rows = new Map();
  const again = v.poll(() => "/fleet?" + new URLSearchParams({ ...q, limit: LIMIT }), (doc) => {
    clock.set(doc.now);
    text(document.getElementById("hub"), `hub ${doc.hub} · ${doc.version}`);
    states.forEach((b, i) => text(b, `${STATES[i][1]} ${doc.counts[STATES[i][2]]}`));
    const shown = doc.nodes.length, from = doc.offset || 0;
    text(where, shown === doc.matched ? `${shown} node${shown === 1 ? "" : "s"}` : `${from + 1}–${from + shown} of ${doc.matched}`);
    back.hidden = on.hidden = shown === doc.matched;
    back.disabled = from === 0;
    on.disabled = from + shown >= doc.matched;
    const seen = new Set();
    doc.nodes.forEach((n, i) => {
      seen.add(n.name);
      let tr = rows.get(n.name);
      if (!tr) rows.set(n.name, tr = row(n));
      fill(tr, n);
      if (body.children[i] !== tr) body.insertBefore(tr, body.children[i] || null);
    });
    for (const [name, tr] of rows) if (!seen.has(name)) { tr.remove(); rows.delete(name); }
    table.hidden = shown === 0;
    empty.hidden = shown !== 0;
    text(empty, doc.counts.all && shown === 0 ? "No node fits the filter." : doc.complete ? "There are no edge nodes yet. On the hub's machine, `holdfast token create` prints the command that makes one." : "The hub has just started, and is reading which nodes there are.");
  });
  v.signal.addEventListener("abort", () => clearTimeout(typing));
}

function row(n) {
  const tr = h("tr", { "data-node": n.name });
  tr.append(h("th", { scope: "row" }, h("a", { href: "#/node/" + encodeURIComponent(n.name) }, n.name)));
  for (const [key, , kind] of COLUMNS.slice(1)) tr.append(h("td", { "data-key": key, class: kind || "" }));
  return tr;
}

export function lineOf(n) {
  const dot = h("span", { class: "dot" + (n.connected ? " on good" : " bad"), "aria-hidden": "true" });
  return [dot, n.connected ? (n.transport || "connected elsewhere") : "offline", " ", n.since ? when(n.since, "for ", false) : ""];
}

export function offlineReadyOf(n) {
  const tone = { True: "good", False: "bad", Unknown: "warn" }[n.offlineReady] || "quiet";
  const word = { True: "yes", False: "no", Unknown: "unknown" }[n.offlineReady] || "not told";
  return [h("span", { class: tone }, word), n.offlineReady !== "True" && n.offlineReadyReason ? h("span", { class: "quiet" }, " " + n.offlineReadyReason) : ""];
}

export function podsOf(n) {
  return n.pods.unknown ? [h("span", { class: "quiet", title: "Another hub's, or nobody's: they are being counted" }, "–")]
    : [h("span", { class: n.pods.ready < n.pods.total ? "warn" : "", title: `${n.pods.ready} of ${n.pods.total} pods are ready` }, `${n.pods.ready}/${n.pods.total}`)];
}

function fill(tr, n) {
  const cells = {
    line: lineOf(n), offlineReady: offlineReadyOf(n), pods: podsOf(n),
    bytes: [h("span", { title: `${n.bytesToday.down} bytes down, ${n.bytesToday.up} bytes up, since midnight UTC` }, `↓${bytes(n.bytesToday.down)} ↑${bytes(n.bytesToday.up)}`)],
    rtt: [n.rttMillis ? n.rttMillis.toFixed(1) + " ms" : ""],
    seen: [n.lastSeen ? when(n.lastSeen, "", true) : "never"],
    hub: [n.hub || ""], version: [n.version || n.kubelet || ""],
  };
  for (const td of tr.children) {
    const now = cells[td.dataset.key];
    if (!now) continue;
    const sign = JSON.stringify(now.map((c) => (c.outerHTML || c)));
    if (td.sign !== sign) { td.sign = sign; td.replaceChildren(...now); }
  }
}

// Ways --------------------------------------------------------------------------

function route() {
  const hash = location.hash.slice(1);
  if (hash.startsWith("token=")) {
    token.set(decodeURIComponent(hash.slice(6)));
    history.replaceState(null, "", "#/");
    return route();
  }
  if (!token.get()) return login("This page shows the fleet to those who may see it.");
  document.getElementById("leave").hidden = false;
  say("");
  main.classList.remove("stale");
  const [path, query] = hash.split("?");
  const node = path.match(/^\/node\/([^/]+)$/);
  if (node) return showNode(main, view(), decodeURIComponent(node[1]));
  showFleet(new URLSearchParams(query || ""));
}

document.getElementById("leave").addEventListener("click", () => { token.set(""); route(); });
document.addEventListener("keydown", (e) => {
  const field = document.querySelector("input[type=search]");
  if (e.key === "/" && field && !askFor(e.target)) { e.preventDefault(); field.focus(); }
});
addEventListener("hashchange", route);
setInterval(tick, 1000);
route();
