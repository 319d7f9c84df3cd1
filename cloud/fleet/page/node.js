// One node's page: facts, line, conditions, pods, events, logs.
import { h, svg, text, set, when, span, absolute, bytes, clock } from "/dom.js";
import { ask, Refused } from "/api.js";
import { lineOf, offlineReadyOf, podsOf } from "/page.js";

const MAX_LINES = 5000;

export function showNode(main, view, name) {
  document.title = name + " – Holdfast";
  const title = h("h1", {}, name);
  const remarks = h("ul", { class: "remarks" });
  const facts = h("dl", { class: "facts" });
  const plot = svg("svg", { class: "plot", role: "img" });
  const changes = h("tbody");
  const conditions = h("tbody"), pods = h("tbody"), events = h("tbody");
  const logs = logPanel(view, name);
  const part = (label, ...inside) => h("section", { "aria-label": label }, h("h2", {}, label), h("div", { class: "wide" }, ...inside));
  const table = (caption, heads, body) => h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, ...heads.map((t) => h("th", { scope: "col", class: t === "Restarts" ? "num" : "" }, t)))), body);
  main.replaceChildren(
    h("p", {}, h("a", { href: "#/" }, "← All nodes")), title, remarks,
    h("div", { class: "wide" }, facts),
    part("Line", h("div", { class: "padded" }, plot, h("details", {}, h("summary", {}, "Changes"), table("Changes of the line", ["From", "To", "For", "State"], changes)))),
    part("Pods", table("Pods", ["Pod", "Phase", "Ready", "Restarts", "Reason", "Logs"], pods)),
    logs.section,
    part("Conditions", table("Conditions", ["Type", "Status", "Reason", "Since", "Message"], conditions)),
    part("Events", table("Events", ["At", "Type", "Object", "Reason", "Message"], events)));

  view.poll(() => "/fleet/nodes/" + encodeURIComponent(name), (n) => {
    replace(remarks, (n.remarks || []).map((r) => h("li", {}, r)));
    replace(facts, factsOf(n).flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, ...v)]).reduce(pairs, []));
    draw(plot, n.line);
    replace(changes, [...n.line].reverse().map((s) => h("tr", {}, h("td", {}, absolute(s.from)), h("td", {}, s.to ? absolute(s.to) : "now"),
      h("td", {}, span((s.to ? Date.parse(s.to) : clock.now()) - Date.parse(s.from))), h("td", { class: s.connected ? "good" : "bad" }, stateOf(s)))));
    replace(pods, n.podList.length ? n.podList.map((p) => podRow(p, logs)) : [nothing(6, "No pods.")]);
    replace(conditions, n.conditions.length ? n.conditions.map(conditionRow) : [nothing(5, "The node has told of none.")]);
    replace(events, n.events.length ? n.events.map(eventRow) : [nothing(5, "No events; the cluster keeps them for an hour.")]);
  });
}

// pairs puts each dt and dd into a group.
function pairs(all, e) {
  if (e.tagName === "DT") all.push(h("div", {}, e));
  else all[all.length - 1].append(e);
  return all;
}

const nothing = (columns, words) => h("tr", {}, h("td", { colspan: columns, class: "quiet" }, words));

// replace puts new elements in, unless they look as those that are there.
function replace(into, elements) {
  const sign = elements.map((e) => e.outerHTML).join("");
  if (into.sign === sign) return;
  const held = document.activeElement && into.contains(document.activeElement) ? document.activeElement.dataset.id : "";
  into.sign = sign;
  into.replaceChildren(...elements);
  if (held) into.querySelector(`[data-id="${CSS.escape(held)}"]`)?.focus();
}

function factsOf(n) {
  const ready = { True: "yes", False: "no", Unknown: "not heard" }[n.ready] || "not told";
  return [
    ["Line", lineOf(n)],
    ["Last heard", [n.lastSeen ? when(n.lastSeen, "", true) : "never"]],
    ["Ready", [h("span", { class: n.ready === "True" ? "good" : "bad" }, ready), n.readyReason ? " " + n.readyReason : ""]],
    ["Offline-ready", offlineReadyOf(n)],
    ["Pods ready", podsOf(n)],
    ["Today, since midnight UTC", [`↓ ${bytes(n.bytesToday.down)}  ↑ ${bytes(n.bytesToday.up)}`]],
    ["Round trip", [n.rttMillis ? n.rttMillis.toFixed(1) + " ms" : "–"]],
    ["From", [n.remote || "–"]],
    ["Hub", [n.hub || "–"]],
    ["edgecore", [n.version || "–"]],
    ["Kubernetes", [n.kubelet || "–"]],
    ["Runtime", [n.runtime || "–"]],
    ["System", [[n.os, n.arch].filter(Boolean).join(", ") || "–"]],
  ];
}

const stateOf = (s) => (s.connected ? (s.transport ? "connected by " + s.transport : "connected to another hub") : "offline");

// draw shows the line's history as a strip from the first change that is known to now.
function draw(plot, line) {
  const now = clock.now(), W = 1000;
  const first = line.length ? Date.parse(line[0].from) : now;
  const from = Math.min(first, now - 10 * 60e3);
  const x = (t) => Math.max(0, Math.min(W, ((t - from) / (now - from)) * W));
  set(plot, "viewBox", `0 0 ${W} 40`);
  set(plot, "preserveAspectRatio", "none");
  const lost = line.filter((s) => !s.connected).length;
  set(plot, "aria-label", `The line since ${absolute(from)}: ${line.length} spans, ${lost} of them offline. The table of changes has them all.`);
  const before = svg("rect", { class: "none", x: 0, y: 2, width: W, height: 36 });
  before.append(svg("title", {}, "this hub did not know the node yet"));
  const strip = (s) => {
    const a = x(Date.parse(s.from)), b = x(s.to ? Date.parse(s.to) : now);
    // An outage is lower than the line is, for those who see no colours, and never too
    // thin to be seen.
    const r = svg("rect", { class: s.connected ? "on" : "off", x: a.toFixed(1), y: s.connected ? 2 : 20, width: Math.max(b - a, s.connected ? 0 : 2).toFixed(1), height: s.connected ? 36 : 18 });
    r.append(svg("title", {}, `${stateOf(s)}, ${absolute(s.from)} to ${s.to ? absolute(s.to) : "now"}`));
    return r;
  };
  plot.replaceChildren(before, ...line.filter((s) => s.connected).map(strip), ...line.filter((s) => !s.connected).map(strip));
  axis(plot, from, now);
}

// axis puts the times under the strip, outside of what is stretched.
function axis(plot, from, now) {
  let row = plot.nextElementSibling;
  if (!row || !row.classList.contains("bar")) {
    const legend = (kind, words) => h("span", { class: "legend " + kind }, words);
    plot.after(row = h("div", { class: "bar quiet" }, h("span"), h("span", { class: "push" }), legend("on", "connected"), legend("off", "offline"), legend("", "not known"), h("span", { class: "push" }, "now")));
  }
  text(row.firstChild, absolute(from) + " (" + span(now - from) + " ago)");
}

function podRow(p, logs) {
  const tone = p.ready || p.phase === "Succeeded" ? "good" : "warn";
  const buttons = (p.containers || []).map((c) => {
    const b = h("button", { type: "button", "data-id": `${p.namespace}/${p.name}/${c}`, "aria-label": `Logs of ${c} in ${p.name}` }, c);
    b.addEventListener("click", () => logs.open(p.namespace, p.name, c));
    return b;
  });
  return h("tr", {}, h("th", { scope: "row" }, `${p.namespace}/${p.name}`), h("td", {}, p.phase), h("td", { class: tone }, p.ready ? "yes" : "no"),
    h("td", { class: "num" }, String(p.restarts)), h("td", { class: "free" }, p.reason || ""), h("td", {}, ...buttons.flatMap((b) => [b, " "])));
}

const conditionRow = (c) => h("tr", {}, h("th", { scope: "row" }, c.type), h("td", { class: toneOf(c) }, c.status), h("td", {}, c.reason || ""), h("td", {}, when(c.since, "", true)), h("td", { class: "free" }, c.message || ""));

function toneOf(c) {
  const wanted = /Ready$/.test(c.type) ? "True" : "False";
  return c.status === wanted ? "good" : c.status === "Unknown" ? "warn" : "bad";
}

const eventRow = (e) => h("tr", {}, h("td", {}, when(e.at, "", true)), h("td", { class: e.type === "Warning" ? "warn" : "" }, e.type), h("td", {}, e.object),
  h("td", {}, e.reason), h("td", { class: "free" }, e.message, e.count > 1 ? h("span", { class: "quiet" }, ` (${e.count} times)`) : ""));

// Logs ----------------------------------------------------------------------------

function logPanel(view, node) {
  const label = h("span"), out = h("pre", { tabindex: "0", "aria-label": "Log" });
  const follow = h("input", { type: "checkbox", id: "follow" }), tail = h("select", { "aria-label": "Lines" });
  for (const n of [200, 1000, 10000]) tail.append(h("option", { value: n }, n + " lines"));
  const state = h("span", { class: "quiet", role: "status" });
  const section = h("section", { "aria-label": "Log", hidden: "" }, h("h2", {}, "Log of ", label),
    h("div", { class: "bar" }, tail, h("label", {}, follow, " follow"), state), h("div", { class: "wide" }, out));
  let of = null, reading = null;

  const read = async () => {
    reading?.abort();
    const mine = (reading = new AbortController());
    const signal = AbortSignal.any([mine.signal, view.signal]);
    out.textContent = "";
    text(state, "reading");
    try {
      const path = `/fleet/nodes/${[node, "logs", ...of].map(encodeURIComponent).join("/")}`;
      const answer = await ask(`${path}?${new URLSearchParams({ tailLines: tail.value, follow: follow.checked })}`, {}, signal);
      if (follow.checked) text(state, "following");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let lines = 0, any = false;
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        any = true;
        const atEnd = out.scrollTop + out.clientHeight >= out.scrollHeight - 8;
        out.append(value);
        lines += value.split("\n").length - 1;
        if (lines > 2 * MAX_LINES) {
          const kept = out.textContent.split("\n").slice(-MAX_LINES);
          out.textContent = kept.join("\n");
          lines = MAX_LINES;
        }
        if (atEnd) out.scrollTop = out.scrollHeight;
      }
      text(state, any ? (follow.checked ? "it has ended" : "") : "it is empty");
    } catch (e) {
      if (signal.aborted) return;
      text(state, e instanceof Refused ? e.message : "the line to the hub or the node was cut; choose the container again to go on");
    }
  };
  follow.addEventListener("change", read);
  tail.addEventListener("change", read);
  return {
    section,
    open(namespace, pod, container) {
      of = [namespace, pod, container];
      text(label, `${container} in ${namespace}/${pod}`);
      section.hidden = false;
      section.scrollIntoView({ block: "nearest" });
      read();
    },
  };
}
