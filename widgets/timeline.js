import { clamp, decimal, KIND_COLOURS, KINDS, LETTERS, NAMES } from "./_numbers.js";
import { choice, storeView } from "./_kit.js";
import { picturePanel } from "./_panel.js";
import { backdrop } from "./_pen.js";

/**
 * Timeline: what happened when, on one axis of time or tokens. Lanes for the parts of the text (of
 * several agents one each), tool calls with their retries and those that wait, the engine's time per
 * token, memory. A brush is the token range of all views. Not here: the events (engine/events.py).
 */

const CALL = KINDS.indexOf("call"), LANES = ["tools", "engine", "experts", "memory"];
const NAMED = { text: "text", tools: "tool calls", engine: "ms / token", experts: "brought", memory: "cache" };

// ---------------------------------------------------------------- data (pure)

/**
 * When each token was there, in seconds since the run began. Given tokens have no time of their own:
 * they came with the next chosen one, the prompt before the first.
 * @param {any} data @returns {Float32Array} [token + 1]: token i lasts from i to i + 1
 */
export function times(data) {
  const { seconds } = data.column, edges = new Float32Array(data.n + 1);
  let last = 0;
  for (let i = 0; i < data.n; i++) {
    edges[i] = last;
    if (!Number.isNaN(seconds[i])) last = Math.max(last, seconds[i]);
  }
  edges[data.n] = last;
  return edges;
}

/**
 * Consecutive tokens of one kind, in one context.
 * @typedef {{kind: number, start: number, stop: number, agent: string}} Span
 * @param {any} data @param {[number, string][]} contexts where each begins, and whose it is @returns {Span[]}
 */
export function spans(data, contexts = []) {
  const { kinds } = data.column, found = [], begins = new Map(contexts);
  for (let agent = "", i = 0; i < data.n; i++) {
    const last = found[found.length - 1];
    agent = begins.get(i) ?? agent;
    if (last && last.kind === kinds[i] && !begins.has(i)) last.stop = i + 1; else found.push({ kind: kinds[i], start: i, stop: i + 1, agent });
  }
  return found;
}

/** Tokens that are remembered once `i` of them were read. @param {[number, string][]} contexts */
export const remembered = (contexts, i) => i - (contexts.findLast(([start]) => start < i)?.[0] ?? 0);

/** Whether a call waits for a person, runs, or has ended. @param {any} call @param {boolean} [over] whether the run has */
export const stateOf = ({ ok, approval }, over = false) => ((ok ?? null) !== null ? (ok ? "answered" : "failed") : over ? "unfinished" : approval === "waiting" ? "waits for approval" : "running");

/**
 * Tool calls with what they cover: the tokens they were written with, the time they took, and how
 * often the same tool was asked before because it had failed.
 * @typedef {{call: any, start: number, stop: number, from: number, to: number, retry: number, agent: string, state: string}} Asked
 * @param {any} data @param {Float32Array} edges @param {Span[]} parts @param {boolean} [over] whether the run has ended @returns {Asked[]}
 */
export function asked(data, edges, parts, over = false) {
  const found = [];
  for (const call of data.calls) {
    if (!call || call.index >= data.n) continue;
    const stop = call.index + 1, before = found[found.length - 1];
    const from = before?.stop ?? 0, last = parts.findLastIndex((part) => part.start < stop);
    let start = call.index; // back over its section: a call that was read again after compaction is another one
    for (let k = last; parts[k]?.stop > from && (parts[k].kind === CALL || parts[k].kind === 0); k--) if (parts[k].kind === CALL) start = Math.max(parts[k].start, from);
    const retry = before && before.call.ok === false && before.call.name === call.name ? before.retry + 1 : 0;
    found.push({ call, start, stop, from: edges[stop], to: edges[stop] + (call.seconds ?? 0), retry, agent: parts[last]?.agent ?? "", state: stateOf(call, over) });
  }
  return found;
}

/** A call in words. @param {Asked} one */
export function callWords({ call, retry, agent, state }, most = 90) {
  const time = call.seconds === null || call.seconds === undefined ? "" : ` in ${decimal(call.seconds, 3)} s`;
  return `${agent ? `${agent}: ` : ""}${call.name}(${short(call.arguments, most)}) ${state}${time}${call.content ? `: ${short(call.content, most)}` : ""}${retry ? ` · retry ${retry}` : ""}`;
}

const short = (text, most = 90) => { const flat = String(text).replace(/\s+/g, " "); return flat.length > most ? `${flat.slice(0, most)} …` : flat; };

/** Everything in the lanes as a table: parts of the text in order, calls where they were asked. */
export function laneRows({ edges, parts, calls, moved }) {
  const seconds = (a, b) => decimal(edges[b] - edges[a], 3);
  const rows = parts.map(({ kind, start, stop, agent }) => [start, [`${start}–${stop - 1}`, (agent ? `${agent}: ` : "") + NAMES[KINDS[kind]], seconds(start, stop), moved ? movedWords(moved, start, stop) : "–", ""]]);
  for (const one of calls) rows.push([one.stop - 0.5, [`${one.start}–${one.stop - 1}`, "call of a tool", decimal(one.call.seconds ?? NaN, 3), "–", callWords(one, 400)]]);
  rows.sort(([a], [b]) => a - b);
  return { caption: "Parts and tool calls in order", head: ["tokens", "what", "seconds", "experts", "call"], rows: rows.map(([, row]) => row) };
}

/** Round steps for an axis. @param {number} span @param {number} room how many fit */
export function axisStep(span, room) {
  const rough = span / Math.max(1, room), power = 10 ** Math.floor(Math.log10(Math.max(rough, 1e-9)));
  return [1, 2, 5, 10].map((one) => one * power).find((step) => step >= rough) ?? 10 * power;
}

/**
 * What an offloading engine brought, token by token: seconds that the network waited for experts,
 * bytes moved over all links, experts asked for that were there and that were not.
 * @param {any} data @returns {{wait: Float32Array, bytes: Float64Array, hits: Float64Array, misses: Float64Array} | null} null: nothing was brought
 */
export function brought(data) {
  if (!data.moves.length) return null;
  const wait = new Float32Array(data.n), [bytes, hits, misses] = [0, 1, 2].map(() => new Float64Array(data.n));
  for (const move of data.moves) {
    const total = Object.values(move.bytes).reduce((sum, one) => sum + one, 0), stop = Math.min(data.n, move.start + move.tokens);
    for (let i = move.start; i < stop; i++) { wait[i] += move.stall / move.tokens; bytes[i] += total / move.tokens; hits[i] += move.hits / move.tokens; misses[i] += move.misses / move.tokens; }
  }
  return { wait, bytes, hits, misses };
}

/** Tokens a … b − 1 in words: what was waited for and brought. @param {ReturnType<typeof brought>} moved */
export function movedWords(moved, a, b) {
  if (!moved) return "";
  const sum = (values) => values.subarray(a, b).reduce((total, one) => total + one, 0), [hits, misses] = [sum(moved.hits), sum(moved.misses)];
  return `waited ${decimal(sum(moved.wait) * 1000, 1)} ms for experts, ${bytesWords(sum(moved.bytes))} brought, ${hits + misses ? Math.round((100 * hits) / (hits + misses)) : 100} % were there`;
}

/** Where everything lies, in CSS px. @param {number} width @param {boolean} [moving] with a lane for what is brought @param {string[]} [agents] each with a lane */
export function place(width, moving = false, agents = []) {
  const left = 62, heights = { text: 24, tools: 22, engine: 34, experts: 26, memory: 26 };
  let y = 4;
  const lanes = {};
  for (const lane of [...(agents.length ? agents.map((name) => `text ${name}`) : ["text"]), ...LANES]) {
    if (lane === "experts" && !moving) continue;
    lanes[lane] = { y, height: heights[lane] ?? heights.text };
    y += lanes[lane].height + 6;
  }
  return { width, height: y + 18, left, room: width - left - 8, lanes, axisY: y };
}

/**
 * The axis: position of a token's edge, and the token at a position.
 * @param {"tokens"|"time"} kind @param {any} data @param {Float32Array} edges @param {[number, number]} zoom shares of the whole
 */
export function scale(kind, data, edges, zoom, at) {
  const whole = kind === "time" ? Math.max(edges[data.n], 1e-6) : Math.max(1, data.n), from = zoom[0] * whole, span = Math.max(1e-9, (zoom[1] - zoom[0]) * whole);
  const x = (value) => at.left + ((value - from) / span) * at.room;
  const tokenX = (i) => x(kind === "time" ? edges[clamp(i, 0, data.n)] : i);
  const token = (px) => {
    const value = from + ((px - at.left) / at.room) * span;
    if (kind === "tokens") return clamp(Math.floor(value), 0, data.n - 1);
    let low = 0, high = data.n - 1; // the last token whose edge is not after it
    while (low < high) { const middle = (low + high + 1) >> 1; if (edges[middle] <= value) low = middle; else high = middle - 1; }
    return low;
  };
  return { x, tokenX, token, from, span, whole };
}

/** A zoom that is `factor` as wide around a share of what is seen. @param {[number, number]} zoom @returns {[number, number]} */
export function zoomed(zoom, factor, around, least = 0.0005) {
  const span = clamp((zoom[1] - zoom[0]) * factor, least, 1), focus = zoom[0] + (zoom[1] - zoom[0]) * around;
  const from = clamp(focus - span * around, 0, 1 - span);
  return [from, from + span];
}

// ---------------------------------------------------------------- drawing

function draw(pen, at, ink, shown) {
  const { data, axis, range, head, pinned } = shown;
  backdrop(shown.kept, pen, at, `${shown.stamp}|${ink.dark}|${ink.bg}`, (below) => drawLanes(below, at, ink, shown));
  const clip = (x) => clamp(x, at.left, at.left + at.room), top = 4, bottom = at.axisY - 2;
  if (range) {
    const [a, b] = [clip(axis.tokenX(range[0])), clip(axis.tokenX(range[1]))];
    pen.fillStyle = ink.accent; pen.globalAlpha = 0.22;
    pen.fillRect(a, top, Math.max(1, b - a), bottom - top);
    pen.globalAlpha = 1;
  }
  for (const [i, colour] of [[pinned, ink.pin], [head, ink.fg]]) {
    if (i < 0 || i >= data.n) continue;
    const x = axis.tokenX(i);
    if (x < at.left - 1 || x > at.left + at.room) continue;
    pen.fillStyle = colour;
    pen.fillRect(x, top, Math.max(1.5, Math.min(axis.tokenX(i + 1) - x, 3)), bottom - top);
  }
}

function drawLanes(pen, at, ink, { data, edges, parts, calls, axis, kind, perToken, focus, moved, contexts }) {
  pen.font = `11px ${ink.sans}`;
  pen.textBaseline = "middle"; pen.textAlign = "left";
  for (const lane of Object.keys(at.lanes)) {
    const { y, height } = at.lanes[lane];
    pen.fillStyle = ink.dim;
    pen.fillText(NAMED[lane] ?? lane.slice(5), 0, y + height / 2, at.left - 6);
    pen.fillStyle = ink.soft; pen.globalAlpha = 0.35;
    pen.fillRect(at.left, y, at.room, height);
    pen.globalAlpha = 1;
  }
  const clip = (x) => clamp(x, at.left, at.left + at.room);
  drawText(pen, at, ink, parts, axis, clip);
  drawEngine(pen, at, ink, data, edges, axis, clip, moved);
  if (moved) drawBrought(pen, at, ink, data, axis, clip, moved);
  drawMemory(pen, at, ink, data, axis, perToken, contexts);
  drawCalls(pen, at, ink, calls, axis, clip, kind, focus);
  drawAxis(pen, at, ink, axis, kind);
  pen.fillStyle = ink.fg; // what is before such a line is not remembered after it
  for (const [start] of contexts) if (start && axis.tokenX(start) > at.left && axis.tokenX(start) < at.left + at.room) pen.fillRect(axis.tokenX(start), 2, 1, at.axisY - 4);
}

function drawText(pen, at, ink, parts, axis, clip) {
  let drawn = -1;
  for (const part of parts) {
    const { y, height } = at.lanes[`text ${part.agent}`] ?? at.lanes.text ?? at.lanes.tools;
    const a = clip(axis.tokenX(part.start)), b = clip(axis.tokenX(part.stop)), name = KINDS[part.kind];
    if (b <= at.left || a >= at.left + at.room || (b - a < 0.3 && a - drawn < 0.3)) continue;
    drawn = a;
    pen.fillStyle = `rgb(${KIND_COLOURS[name].join(",")})`;
    pen.globalAlpha = name === "marker" ? 0.35 : 0.75;
    pen.fillRect(a, y, Math.max(0.7, b - a - (b - a > 3 ? 0.5 : 0)), height);
    pen.globalAlpha = 1;
    if (b - a < 13 || name === "marker") continue;
    pen.fillStyle = ink.dark && name !== "user" && name !== "result" ? "#fff" : "#000"; pen.textAlign = "left";
    pen.fillText(b - a > 80 ? NAMES[name] : LETTERS[name], a + 3, y + height / 2);
  }
}

function drawCalls(pen, at, ink, calls, axis, clip, kind, focus) {
  const { y, height } = at.lanes.tools;
  for (const one of calls) {
    const { call, retry, state } = one, bad = state === "failed", waits = state === "waits for approval";
    const a = clip(kind === "time" ? axis.x(one.from) : axis.tokenX(one.start)), b = clip(kind === "time" ? axis.x(one.to) : axis.tokenX(one.stop));
    if (b <= at.left || a >= at.left + at.room) continue;
    const wide = Math.max(4, b - a);
    pen.fillStyle = bad ? "#d55e00" : waits ? "#e69f00" : call.ok ? "#cc79a7" : ink.dim;
    pen.fillRect(a, y + 2, wide, height - 4);
    if (waits) { pen.strokeStyle = ink.fg; pen.lineWidth = 1; pen.strokeRect(a - 0.5, y + 1.5, wide + 1, height - 3); }
    if (retry) { pen.strokeStyle = "#d55e00"; pen.lineWidth = 2; pen.strokeRect(a - 1, y + 1, wide + 2, height - 2); }
    if (call === focus) { pen.strokeStyle = ink.fg; pen.lineWidth = 2; pen.strokeRect(a - 2, y, wide + 4, height); }
    pen.fillStyle = wide > 40 ? "#000" : ink.fg; pen.textAlign = "left";
    const mark = { failed: "✕", running: "…", "waits for approval": "?" }[state] ?? "", words = `${mark}${mark && " "}${retry ? `↻${retry} ` : ""}${call.name}`, room = wide > 40 ? wide - 6 : 0;
    if (room) pen.fillText(words, a + 3, y + height / 2, room);
    else if (kind === "time" || axis.span < 400 || waits) pen.fillText(mark || (retry ? "↻" : ""), a + wide + 2, y + height / 2);
  }
}

/** A bar for each token, standing on the lane's floor; of tokens within one pixel the highest. */
function bars(pen, { y, height }, axis, clip, first, last, high) {
  let column = -1, tallest = 0, left = 0;
  const put = (until) => { if (tallest) pen.fillRect(left, y + height - tallest, Math.max(0.7, until - left), tallest); };
  for (let i = first; i <= last; i++) {
    const a = clip(axis.tokenX(i));
    if (Math.floor(a) !== column) { put(a); column = Math.floor(a); tallest = 0; left = a; }
    tallest = Math.max(tallest, high(i));
  }
  put(clip(axis.tokenX(last + 1)));
}

/** Bytes that were brought for each token, from disk or host; the label says how many experts were there. */
function drawBrought(pen, at, ink, data, axis, clip, moved) {
  const { y, height } = at.lanes.experts, first = axis.token(at.left), last = Math.min(data.n - 1, axis.token(at.left + at.room));
  const most = moved.bytes.subarray(first, last + 1).reduce((best, one) => Math.max(best, one), 1);
  pen.fillStyle = "#0072b2"; pen.globalAlpha = 0.7;
  bars(pen, at.lanes.experts, axis, clip, first, last, (i) => (moved.bytes[i] / most) * (height - 2));
  pen.globalAlpha = 1;
  pen.fillStyle = ink.fg; pen.textAlign = "right";
  pen.fillText(`${bytesWords(most)} / token`, at.left + at.room - 3, y + 7);
}

/** Milliseconds of each token; where tokens are narrower than a pixel, the slowest of each pixel. */
function drawEngine(pen, at, ink, data, edges, axis, clip, moved) {
  const { y, height } = at.lanes.engine, { seconds } = data.column, first = axis.token(at.left), last = Math.min(data.n - 1, axis.token(at.left + at.room));
  let most = 0;
  for (let i = first; i <= last; i++) if (!Number.isNaN(seconds[i])) most = Math.max(most, edges[i + 1] - edges[i]);
  if (!most) return;
  const known = []; // one slow token must not flatten the rest: logarithmic above the typical
  for (let i = first, step = Math.max(1, Math.floor((last - first) / 500)); i <= last; i += step) if (edges[i + 1] > edges[i]) known.push(edges[i + 1] - edges[i]);
  const typical = known.sort((a, b) => a - b)[known.length >> 1] || most, level = (value) => (Math.log1p(value / typical) / Math.log1p(most / typical)) * (height - 2);
  pen.fillStyle = ink.dim;
  const took = (i) => (Number.isNaN(seconds[i]) ? 0 : edges[i + 1] - edges[i]);
  bars(pen, at.lanes.engine, axis, clip, first, last, (i) => level(took(i)));
  if (moved) { // the part of it in which the network waited for experts
    pen.fillStyle = "#e69f00";
    bars(pen, at.lanes.engine, axis, clip, first, last, (i) => (took(i) ? level(took(i)) * Math.min(1, moved.wait[i] / took(i)) : 0));
  }
  pen.fillStyle = ink.fg; pen.textAlign = "right";
  pen.fillText(`${moved ? "orange: waiting for experts · " : ""}${decimal(most * 1000, most < 0.01 ? 1 : 0)} ms`, at.left + at.room - 3, y + 7);
}

function drawMemory(pen, at, ink, data, axis, perToken, contexts) {
  const { y, height } = at.lanes.memory;
  if (!perToken) { pen.fillStyle = ink.dim; pen.textAlign = "left"; pen.fillText("missing: this trace does not say how large its cache is", at.left + 6, y + height / 2, at.room - 8); return; }
  const most = Math.max(...contexts.map(([start], k) => (contexts[k + 1]?.[0] ?? data.n) - start), 1);
  pen.fillStyle = "#56b4e9"; pen.globalAlpha = 0.7;
  pen.beginPath();
  pen.moveTo(at.left, y + height);
  for (let k = 0; k <= 200; k++) {
    const x = at.left + (at.room * k) / 200, i = axis.token(x) + (k === 200 ? 1 : 0);
    pen.lineTo(x, y + height - (remembered(contexts, Math.min(i, data.n)) / most) * (height - 2));
  }
  pen.lineTo(at.left + at.room, y + height);
  pen.fill();
  pen.globalAlpha = 1;
  pen.fillStyle = ink.fg; pen.textAlign = "right";
  pen.fillText(bytesWords(most * perToken), at.left + at.room - 3, y + 7);
}

/** Bytes as people read them. @param {number} count */
export function bytesWords(count) {
  const step = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]].find(([size]) => count >= Number(size));
  return step ? `${(count / Number(step[0])).toFixed(count / Number(step[0]) < 10 ? 1 : 0)} ${step[1]}` : `${count} B`;
}

function drawAxis(pen, at, ink, axis, kind) {
  const step = axisStep(axis.span, at.room / 70);
  pen.textAlign = "center"; pen.fillStyle = ink.dim;
  for (let value = Math.ceil(axis.from / step) * step; value <= axis.from + axis.span * 1.0001; value += step) {
    const x = axis.x(value), words = kind === "time" ? `${decimal(value, step < 0.1 ? 2 : step < 1 ? 1 : 0)} s` : String(Math.round(value));
    if (kind === "tokens" && step < 1) break;
    pen.fillRect(x, at.axisY - 2, 1, 4);
    if (x < at.left + at.room - 12) pen.fillText(words, Math.max(x, at.left + 8), at.axisY + 9);
  }
}

// ---------------------------------------------------------------- the widget

function fill(view) {
  const { model, store, root, signal } = view;
  root.classList.add("k2-timeline");
  /** @type {[number, number]} */ let zoom = [0, 1];
  const kept = { canvas: document.createElement("canvas"), key: "" };
  let known = null, seen = "", shown = null;
  const set = (value) => { model.set("axis", value); model.save_changes(); panel.paint(); };
  const panel = picturePanel(view, {
    name: "Timeline", label: "Timeline. Arrow keys move, Shift selects, plus and minus zoom, C goes to the next tool call, Enter pins, Escape clears.",
    tools: [choice("Axis", [["tokens", "over tokens"], ["time", "over time"]], model.get("axis") ?? "tokens", set, signal)], slim: true,
    content, at: (x, y, at) => (shown && x >= at.left && x <= at.left + at.room ? { token: shown.axis.token(x), lane: Object.keys(at.lanes).find((lane) => y >= at.lanes[lane].y && y < at.lanes[lane].y + at.lanes[lane].height + 6) ?? "" } : null),
    hover: ({ token }) => store.hover({ playhead: token }),
    drag: (from, to) => { if (from.token !== to.token) store.select({ range: [Math.min(from.token, to.token), Math.max(from.token, to.token) + 1] }); },
    click: ({ token, lane }) => {
      const part = lane.startsWith("text") && shown.parts.find((one) => one.start <= token && token < one.stop);
      const call = lane === "tools" && nearestCall(token);
      if (part) store.select({ range: [part.start, part.stop], segment: KINDS[part.kind] });
      else if (call) store.select({ range: [call.start, call.stop], playhead: call.stop - 1 });
      else store.pin({ playhead: token });
    },
    keys,
  });
  const nearestCall = (token) => shown.calls.find((one) => one.start <= token && token <= one.stop) ?? shown.calls.findLast((one) => one.stop <= token + 1);
  panel.grid.addEventListener("wheel", (event) => {
    if (!shown || !(event.ctrlKey || event.shiftKey || event.deltaX)) return; // else the page scrolls
    event.preventDefault();
    const box = panel.grid.getBoundingClientRect(), around = clamp((event.clientX - box.left - shown.at.left) / shown.at.room, 0, 1);
    if (event.ctrlKey) zoom = zoomed(zoom, event.deltaY > 0 ? 1.25 : 0.8, around); else pan((event.deltaX || event.deltaY) / shown.at.room);
    panel.paint();
  }, { signal, passive: false });
  model.on("change:axis", panel.paint);
  signal.addEventListener("abort", () => model.off?.("change:axis", panel.paint));

  function pan(share) {
    const span = zoom[1] - zoom[0], from = clamp(zoom[0] + share * span, 0, 1 - span);
    zoom = [from, from + span];
  }

  function content() {
    const { data } = store, { state, contexts = [[0, ""]] } = store.get("status") ?? {}, agents = [...new Set(contexts.map(([, name]) => name).filter(Boolean))];
    if (!data.n) return { why: state === "running" ? "The first token comes soon." : "No tokens in this run." };
    const over = !["running", "paused"].includes(state), states = data.calls.map((call) => call && stateOf(call, over)), waiting = states.filter((one) => one === "waits for approval").length;
    const stamp = `${data.n}|${states}|${data.moves.length}|${contexts}`;
    if (known?.data !== data || seen !== stamp) {
      const edges = times(data), parts = spans(data, contexts);
      known = { data, edges, parts, calls: asked(data, edges, parts, over), moved: brought(data) };
      seen = stamp;
    }
    const kind = model.get("axis") === "time" ? "time" : "tokens", head = store.get("playhead"), range = store.range(), { edges, parts, calls, moved } = known;
    const perToken = store.get("status")?.latent_bytes ?? 0, focus = head >= 0 ? calls.find((one) => one.start <= head && head <= one.stop) : undefined;
    const failed = calls.filter((one) => one.call.ok === false).length, retries = calls.filter((one) => one.retry).length;
    const words = focus ? callWords(focus) : head >= 0 && head < data.n ? `Token ${head}, ${NAMES[KINDS[data.column.kinds[head]]].toLowerCase()}, after ${decimal(edges[head], 2)} s${moved ? `, ${movedWords(moved, head, head + 1)}` : ""}`
      : `${decimal(edges[data.n], 2)} s · ${calls.length} tool call${calls.length === 1 ? "" : "s"}${failed ? `, ${failed} failed` : ""}${retries ? `, ${retries} retried` : ""}${waiting ? `, ${waiting} ${waiting === 1 ? "waits" : "wait"} for approval` : ""}${contexts.length > 1 && !agents.length ? ` · compacted ${contexts.length - 1}×` : ""}. ${moved ? `${movedWords(moved, 0, data.n)}. ` : ""}Drag to select, click a part or call to select its tokens.`;
    return {
      place: (width) => place(width, moved !== null, agents),
      paint: (pen, at, ink) => {
        const axis = scale(kind, data, edges, zoom, at);
        shown = { at, axis, parts, calls, data };
        const below = `${store.epoch}|${seen}|${kind}|${zoom}|${perToken}|${focus?.call.key ?? ""}`;
        draw(pen, at, ink, { data, edges, parts, calls, axis, range, head, pinned: store.pinned()[0], kind, perToken, focus: focus?.call, kept, moved, contexts, stamp: below });
      },
      table: () => laneRows(known),
      words,
    };
  }

  function keys(key, event) {
    if (!shown) return false;
    const { data, calls } = shown, head = store.get("playhead"), at = head < 0 ? data.n - 1 : head, wide = Math.max(1, Math.round(data.n / 100));
    if (key === "+" || key === "=") { zoom = zoomed(zoom, 0.5, 0.5); panel.paint(); return true; }
    if (key === "-") { zoom = zoomed(zoom, 2, 0.5); panel.paint(); return true; }
    if (key === "Enter" && head >= 0) { store.pin({ playhead: head }); return true; }
    const next = key === "c" || key === "C" ? (calls.find((one) => one.start > at) ?? calls[0]) : null;
    if (next) { store.select({ range: [next.start, next.stop], playhead: next.start }); panel.say(callWords(next)); return true; }
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - wide * 10, PageDown: at + wide * 10, Home: 0, End: data.n - 1 }[key];
    if (to === undefined) return false;
    const token = clamp(to, 0, data.n - 1), range = store.range();
    if (event.shiftKey) store.select({ range: range && range[1] - 1 === at ? [Math.min(range[0], token), Math.max(range[0], token) + 1] : [Math.min(at, token), Math.max(at, token) + 1] });
    store.hover({ playhead: token });
    panel.say(`Token ${token}, ${NAMES[KINDS[data.column.kinds[token]]]}`);
    return true;
  }
}

export default storeView(fill);
