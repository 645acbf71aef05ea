import { clamp, decimal, kindColour, KINDS, LETTERS, NAMES, percent } from "./_numbers.js";
import { css, faint, gradient, isDark, onTheme, rampOn } from "./_colour.js";
import { arrange, button, el, latest, onKeys, onSize, painter, region, setText, storeView, table, toggle, traitChoice } from "./_kit.js";
import { approvalCard } from "./_approval.js";
import { blockAt, blockOf, callOf, cutBlocks, estimate, extendGroups, HEAD, offsets, useRows } from "./_blocks.js";
import { askBox, controls, player, statusLine } from "./_head.js";
import { arrow, stepOf, tablePane, takeAway } from "./_panel.js";
import { backdrop, canvasPen, download, fillBox, inkOf, pictureFile, strokeBox } from "./_pen.js";
import { paintText, popover, tokenFacts, visible } from "./_token.js";

/**
 * ThoughtStream: the run's tokens as text. Thinking is an indented ribbon, tool calls are cards, a
 * strip under each token is coloured by entropy, router margin or time. Only blocks near the
 * viewport are in the page. Not here: the data (store.js), the engine's controls (store.py).
 */

/** What the strip can show: label, value of token i (NaN: none), scale, what stands out. */
export const STRIPS = {
  entropy: { label: "Entropy", low: "sure", high: "unsure", value: (data, i) => data.column.entropy[i], share: (v) => v / 3 },
  margin: { label: "Router margin", low: "clear", high: "near tie", value: (data, i) => data.margin(i), share: (v) => -(Math.log10(Math.max(v, 1e-5)) + 1.5) / 2.5 },
  time: { label: "Time", low: "quick", high: "slow", value: (data, i) => (i ? data.column.seconds[i] - data.column.seconds[i - 1] : NaN), share: (v) => (Math.log10(Math.max(v, 1e-3)) + 3) / 3 },
  none: { label: "Nothing", low: "", high: "", value: () => NaN, share: () => 0 },
};

const CALL = KINDS.indexOf("call");

// ---------------------------------------------------------------- words (pure)

/**
 * State of a tool call in words.
 * @param {any} call @param {boolean} [given] whether its text was read, not written, as after compaction
 * @param {boolean} [over] whether the run has ended
 */
export function callState(call, given = false, over = false) {
  if (!call) return { word: given ? "read again" : over ? "unfinished" : "being written", state: "open" };
  if (call.ok === null || call.ok === undefined) return { word: over ? "unfinished" : call.approval === "waiting" ? "waits for you" : "running", state: "open" };
  return { word: `${call.ok ? "answered" : "failed"} in ${decimal(call.seconds, call.seconds < 1 ? 3 : 1)} s`, state: call.ok ? "ok" : "bad" };
}

/** Rows of the token table. */
export function tableRows(data, from, to) {
  return Array.from({ length: Math.max(0, to - from) }, (_, k) => {
    const i = from + k, { ids, kinds, entropy, logprob, seconds } = data.column;
    return [String(i), String(ids[i]), visible(data.texts[i]), NAMES[KINDS[kinds[i]]], percent(Math.exp(logprob[i])), decimal(entropy[i]), decimal(data.margin(i), 4), decimal(seconds[i])];
  });
}

// ---------------------------------------------------------------- parts of the page

/** One token. */
function tokenNode(data, i, strip, colours) {
  const text = data.texts[i], kind = KINDS[data.column.kinds[i]];
  const node = el("span", { class: kind === "marker" ? "k2-token k2-mark" : "k2-token", "data-i": i });
  if (/^\n+$/.test(text)) node.classList.add("k2-break");
  node.textContent = text; // untrusted
  underline(node, data, i, strip, colours);
  return node;
}

/** The strip under a token, where there is a value. */
function underline(node, data, i, strip, colours) {
  const value = strip.value(data, i);
  if (!Number.isNaN(value)) node.style.setProperty("--strip", faint(colours, strip.share(value)));
}

/** A tool call's heading, and its result below its last block. */
function callHead(call, given, over) {
  const { word, state } = callState(call, given, over);
  return el("div.k2-call-head", {}, el("span.k2-call-name", { text: call ? call.name : "tool call" }), el("span.k2-call-state", { "data-state": state, text: word }));
}

function callResult(call) {
  return el("div.k2-call-result", {}, el("span.k2-call-label", { text: call.ok ? "result" : "error" }), el("pre", { text: call.content }));
}

// ---------------------------------------------------------------- the widget

function fill({ model, store, root, signal, fail, compact }) {
  root.classList.add("k2-thoughts");
  const unfolded = new Set(), made = new Map();
  let data = store.data, groups = [], blocks = [], heights = [], sums = offsets([]), following = true;
  let strip = STRIPS[model.get("strip")] ?? STRIPS.entropy, colours = rampOn("cividis", true), dark = false, markers = false;
  let mask = new Uint8Array(0), maskKey = "", shownHead = -1, asTable = false, page = -1, grouped = -1, placed = -1;
  let laid = -1; // the data's version that is laid out; −1: sizes, looks or the place in the text have changed
  let held = null, wide = 0, over = false; // held: what lay at the top, and how far above it, when heights were thrown away
  let highest = 0; // the first block in the page
  const usersOf = latest(), rowsOf = latest(), base = { canvas: document.createElement("canvas"), key: "" };

  const spaceAbove = el("div"), spaceBelow = el("div"), list = el("div.k2-list");
  const empty = el("p.k2-empty");
  const scroll = region("div.k2-scroll", "Tokens. Arrow keys move, Shift selects, S chooses a part, Enter pins, Escape clears.", empty, spaceAbove, list, spaceBelow);
  const map = el("canvas.k2-minimap", { "aria-hidden": "true" });
  const pop = popover(store, signal, scroll), live = el("p.k2-hidden", { "aria-live": "polite" });
  const stage = el("div.k2-stage", {}, scroll, map, pop.box);
  const turns = [["Earlier", -1], ["Later", 1]].map(([word, step]) => button(word, () => { page += step; paint(); }, signal));
  const pane = tablePane("Tokens"), sheet = el("div"), swatch = el("span.k2-ramp"), lowWord = el("span"), highWord = el("span"), heatWords = el("p.k2-heat-words", { hidden: true });
  const paint = painter(draw, signal, fail);
  const relay = () => { laid = -1; paint(); };
  const repaint = () => { made.clear(); relay(); };
  const resize = () => { hold(); heights = []; relay(); };
  const forms = takeAway((on) => { asTable = on; page = -1; paint(); }, picture, signal).group;
  forms.prepend(toggle("Markers", (on) => { markers = on; made.clear(); resize(); }, signal));
  const tools = el("div.k2-tools", {}, controls(store, signal), player(store, signal),
    traitChoice({ model, signal }, "strip", "Strip", Object.entries(STRIPS).map(([key, { label }]) => [key, label]), paint),
    el("span.k2-legend", {}, lowWord, swatch, highWord), el("span.k2-gap"), forms);
  if (!compact) root.append(statusLine(store, signal));
  pane.append(el("div.k2-group", {}, ...turns), sheet);
  root.append(tools, stage, heatWords, pane, askBox(store, signal), live);

  function reset() { data = store.data; groups = []; blocks = []; heights = []; made.clear(); unfolded.clear(); following = true; page = -1; grouped = -1; laid = -1; held = null; highest = 0; }

  function regroup() {
    if (data.n === grouped && heights.length === blocks.length) return;
    grouped = data.n;
    const old = Math.max(0, groups.length - 2), from = blocks.findIndex((block) => block.group >= old);
    extendGroups(data, groups);
    const kept = from < 0 ? 0 : from;
    blocks.length = kept;
    for (let g = kept ? old : 0; g < groups.length; g++) blocks.push(...cutBlocks(data.texts, groups[g], g));
    heights.length = Math.min(heights.length, kept);
    const columns = list.clientWidth / 8.2;
    for (let b = heights.length; b < blocks.length; b++) heights.push(folds(blocks[b]) ? (blocks[b].first ? HEAD : 0) : blocks[b].kind || markers ? estimate(blocks[b], columns) : 0);
  }

  const folds = (block) => (KINDS[block.kind] === "system" || KINDS[block.kind] === "result") && !unfolded.has(block.group);

  function blockNode(block) {
    const kind = KINDS[block.kind], folded = folds(block), group = groups[block.group], call = block.kind === CALL ? callOf(data.calls, groups, block.group) : null;
    const state = block.kind === CALL ? `${call?.ok}${call?.approval}${over}` : "", key = `${block.kind}|${block.last}|${folded}|${state}|${markers}`;
    const known = made.get(block.start), same = known?.key === key, routed = Math.min(block.stop, data.m);
    if (same && known.line && strip === STRIPS.margin && known.routed < routed) { // routing comes after the text
      for (const node of known.line.querySelectorAll(".k2-token")) if (Number(node.dataset.i) >= known.routed) underline(node, data, Number(node.dataset.i), strip, colours);
    }
    if (same) known.routed = routed;
    if (same && known.stop === block.stop) return known.node;
    if (same && known.line && known.stop < block.stop) { write(known.line, block, known.stop); known.stop = block.stop; return known.node; } // it has grown
    const body = el("div.k2-body");
    const node = el("div", { class: `k2-block k2-${kind}${block.first ? " k2-first" : ""}${block.last ? " k2-last" : ""}` }, body);
    if (block.first && kind !== "marker") node.prepend(letterButton(kind));
    if (block.first && block.kind === CALL) body.append(callHead(call, Number.isNaN(data.column.seconds[block.start]), over));
    if (block.first && (kind === "system" || kind === "result")) body.append(foldButton(block.group, group, folded));
    const line = folded ? null : el("div.k2-text");
    if (line) { write(line, block, block.start); body.append(line); }
    if (block.last && call?.approval) body.append(approvalCard(call, store, signal));
    if (block.last && call && typeof call.content === "string") body.append(callResult(call));
    if (kind === "marker" && !markers) node.hidden = true;
    made.set(block.start, { key, node, line, routed, stop: block.stop });
    return node;
  }

  /** The tokens of a block from one on. */
  function write(line, block, from) {
    for (let i = from; i < block.stop; i++) {
      if (markers || data.column.kinds[i] !== 0) line.append(tokenNode(data, i, strip, colours));
      else if (block.kind === CALL && i > groups[block.group].body) line.append(el("br")); // between name and arguments
    }
  }

  const turnSegment = (kind) => store.select({ segment: store.get("segment") === kind ? "" : kind });

  /** Chooses all tokens of a kind, in every view. In the tab order is the text itself; S does the same. */
  function letterButton(kind) {
    const node = button(LETTERS[kind], () => turnSegment(kind), signal, { class: "k2-letter", tabindex: -1, "aria-label": NAMES[kind], title: `${NAMES[kind]}: show what these tokens did` });
    node.setAttribute("aria-pressed", String(store.get("segment") === kind));
    return node;
  }

  function foldButton(index, group, folded) {
    const label = `${NAMES[KINDS[group.kind]]} · ${group.stop - group.body} tokens`;
    const turn = () => {
      if (!unfolded.delete(index)) unfolded.add(index);
      resize();
      following = false; // else the part would be taken away from who opened it
      requestAnimationFrame(() => made.get(group.start)?.node.querySelector(".k2-fold")?.focus({ preventScroll: true })); // the button is a new one
    };
    return button(label, turn, signal, { class: "k2-fold", "aria-expanded": String(!folded) });
  }

  function draw() {
    if (!root.clientWidth) return; // hidden; its size will call again
    if (store.data !== data) reset();
    const nowDark = isDark(getComputedStyle(root).backgroundColor), nowStrip = STRIPS[model.get("strip")] ?? STRIPS.entropy;
    const palette = store.get("palette") ?? "cividis";
    if (nowDark !== dark || nowStrip !== strip || palette !== root.dataset.palette) { dark = nowDark; strip = nowStrip; made.clear(); laid = -1; }
    root.dataset.palette = palette;
    colours = rampOn(palette, dark);
    swatch.style.background = gradient(colours, faint);
    setText(lowWord, strip.low);
    setText(highWord, strip.high);
    lowWord.parentElement.hidden = strip === STRIPS.none;
    stage.hidden = asTable; pane.hidden = !asTable;
    if (asTable) { drawTable(); return; }
    const { status } = store;
    if (over === store.busy) { over = !store.busy; laid = -1; }
    empty.hidden = data.n > 0; map.hidden = !data.n;
    setText(empty, status.state === "running" ? "The model reads the prompt; its first token comes soon." : store.can("ask") ? "Nothing yet. Ask something below." : `No tokens in this run. ${status.detail ?? ""}`);
    if (laid !== data.version) {
      regroup();
      if (following && data.n) reach(); else layout(held ? offsets(heights)[blockOf(blocks, held.token)] + held.above : scroll.scrollTop);
      held = null;
      placed = scroll.scrollTop;
      laid = data.version;
    }
    mark();
    drawMap();
  }

  /** To the end: laid out where that is thought to be, then where it is; heights that were guessed may push it away. */
  function reach() {
    let at = Math.max(0, offsets(heights)[heights.length] - scroll.clientHeight);
    for (let tries = 0; tries < 8; tries++) {
      layout(at);
      scroll.scrollTop = scroll.scrollHeight;
      if (scroll.scrollTop === at) break;
      at = scroll.scrollTop;
    }
  }

  /** Remembers what lies at the top of the view. */
  function hold() {
    const b = blockAt(sums, scroll.scrollTop);
    held ??= blocks[b] ? { token: blocks[b].start, above: scroll.scrollTop - sums[b] } : null;
    highest = 0;
  }

  /** Puts what is near a height into the page. @param {number} top */
  function layout(top) {
    sums = offsets(heights);
    const view = scroll.clientHeight, now = scroll.scrollTop, at = blockAt(sums, top), seen = at < highest && sums[highest] < top + view;
    const anchor = seen ? highest : at, delta = top - (sums[anchor] ?? 0); // what is seen stays, whatever is laid out above it
    const first = blockAt(sums, Math.max(0, top - view / 2)), last = Math.min(blocks.length - 1, blockAt(sums, top + 1.5 * view));
    const nodes = [];
    for (let b = first; b <= last; b++) nodes.push(blockNode(blocks[b]));
    arrange(list, nodes);
    highest = first;
    nodes.forEach((node, k) => { heights[first + k] = node.offsetHeight; });
    sums = offsets(heights);
    spaceAbove.style.height = `${sums[first] ?? 0}px`;
    spaceBelow.style.height = `${sums[sums.length - 1] - (sums[last + 1] ?? 0)}px`;
    if (!following && Math.abs((sums[anchor] ?? 0) + delta - now) > 1) scroll.scrollTop = sums[anchor] + delta;
    if (made.size > 400) for (const [start, { node }] of made) if (!node.isConnected) made.delete(start);
  }

  /** Classes for what is selected; the popover for the token in focus. */
  function mark() {
    const row = store.row(), expert = store.get("expert");
    maskKey = `${store.epoch}|${row}|${expert}|${data.m}`;
    mask = usersOf(maskKey, () => (row >= 0 && expert >= 0 ? data.users(row, expert) : new Uint8Array(0)));
    const range = store.range(), head = store.get("playhead"), pin = store.pinned()[0], { heat } = store;
    let focus = null;
    for (const node of list.querySelectorAll(".k2-token")) {
      const i = Number(node.dataset.i);
      node.classList.toggle("k2-uses", mask[i] === 1);
      node.classList.toggle("k2-brushed", !!range && i >= range[0] && i < range[1]);
      node.classList.toggle("k2-pinned", i === pin);
      node.classList.toggle("k2-head-on", i === head);
      if (i === head) focus = node;
      if (!heat && !node.classList.contains("k2-warm")) continue;
      const warm = heat && i < heat.values.length && heat.values[i] > 0.02 ? `${Math.round(heat.values[i] * 70)}%` : "";
      if (node.style.getPropertyValue("--heat") !== warm) { node.style.setProperty("--heat", warm); node.classList.toggle("k2-warm", warm !== ""); }
    }
    setText(heatWords, heat ? `Shaded: ${heat.label}` : "");
    heatWords.hidden &&= !heat; // its line then stays: the text must not move under the pointer
    const segment = store.get("segment") ?? "";
    root.classList.toggle("k2-filtered", mask.length > 0);
    root.classList.toggle("k2-apart", segment !== "");
    for (const node of list.children) { // one that was scrolled away may still be marked
      const mine = segment !== "" && node.classList.contains(`k2-${segment}`), letter = node.querySelector(".k2-letter");
      node.classList.toggle("k2-mine", mine);
      if (letter && letter.getAttribute("aria-pressed") !== String(mine)) letter.setAttribute("aria-pressed", String(mine));
    }
    const looked = stage.matches(":hover") || stage.contains(document.activeElement); // else it would hide the text for nothing
    if (focus && looked && head < data.n && (shownHead === head || inside(focus))) pop.show(data, head, focus, stage, css(colours, 0.7)); else pop.hide();
    shownHead = head;
  }

  const inside = (node) => { const a = node.getBoundingClientRect(), b = scroll.getBoundingClientRect(); return a.bottom > b.top && a.top < b.bottom; };

  function drawMap() {
    if (!map.clientWidth) return; // its width would be lost
    const width = map.clientWidth, height = scroll.clientHeight, total = Math.max(1, sums[sums.length - 1]), scale = Math.min(1, height / total);
    const pen = canvasPen(map, width, height);
    backdrop(base, pen, { width, height }, `${store.epoch}|${data.version}|${total}`, (below) => blocks.forEach((block, b) => {
      fillBox(below, kindColour(block.kind, 0.55), [3, sums[b] * scale, width - 6, Math.max(1, heights[b] * scale - (block.last ? 1 : 0))]);
    }));
    const wide = rowsOf(`${maskKey}|${total}|${height}`, () => useRows(blocks, sums, heights, mask, scale, Math.ceil(height) + 1));
    wide.forEach((share, y) => { if (share) fillBox(pen, dark ? "#fff" : "#000", [0, y, Math.max(3, width * share), 1]); }); // wide: dense
    if (total > height) strokeBox(pen, dark ? "rgba(255,255,255,.75)" : "rgba(0,0,0,.6)", [0.5, scroll.scrollTop * scale + 0.5, width - 1, Math.max(4, height * scale - 1)]);
  }

  function drawTable() {
    const size = 100, pages = Math.max(1, Math.ceil(data.n / size)), head = store.get("playhead");
    if (page < 0) page = head >= 0 ? Math.floor(head / size) : pages - 1;
    page = clamp(page, 0, pages - 1);
    const from = page * size, to = Math.min(data.n, from + size), key = `${store.epoch}|${page}|${to}|${data.m}`;
    if (pane.dataset.key === key) return;
    pane.dataset.key = key;
    turns.forEach((node, k) => { node.disabled = page === (k ? pages - 1 : 0); });
    sheet.replaceChildren(table(`Tokens ${from} to ${Math.max(from, to - 1)} of ${data.n}`, ["#", "id", "text", "part", "probability", "entropy (nats)", "router margin", "seconds"], tableRows(data, from, to)));
  }

  /** The text in view as a file: each token where the page has it. */
  async function picture(kind) {
    if (asTable || !data.n) return;
    const area = scroll.getBoundingClientRect(), size = { width: area.width + 16, height: area.height + 16 };
    download(await pictureFile(kind, size, (pen) => paintText(pen, list, area), inkOf(root).bg), `thoughtstream.${kind}`);
  }

  // ---- pointer and keys
  const tokenAt = (target) => { const node = target instanceof Element ? target.closest("[data-i]") : target?.parentElement?.closest("[data-i]"); return node && list.contains(node) ? Number(node.dataset.i) : -1; };
  list.addEventListener("pointerover", (event) => { const i = tokenAt(event.target); if (i >= 0) store.hover({ playhead: i }); else store.leave(); }, { signal });
  scroll.addEventListener("pointerleave", () => store.leave(), { signal });
  for (const name of ["pointerenter", "pointerleave", "focusin", "focusout"]) stage.addEventListener(name, paint, { signal });
  list.addEventListener("click", (event) => {
    const selection = getSelection(), i = tokenAt(event.target);
    if (selection && !selection.isCollapsed && list.contains(selection.anchorNode)) {
      const ends = [tokenAt(selection.anchorNode), tokenAt(selection.focusNode)].filter((at) => at >= 0);
      if (ends.length) store.select({ range: [Math.min(...ends), Math.max(...ends) + 1] });
    } else if (i >= 0) store.pin({ playhead: i });
  }, { signal });
  const scrolled = () => { following = scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 24; relay(); };
  scroll.addEventListener("scroll", () => { if (scroll.scrollTop !== placed) scrolled(); }, { signal, passive: true }); // else it was not a person
  map.addEventListener("pointerdown", (event) => {
    const go = (e) => { const total = sums[sums.length - 1], scale = Math.min(1, scroll.clientHeight / total); scroll.scrollTop = e.offsetY / scale - scroll.clientHeight / 2; };
    map.setPointerCapture(event.pointerId);
    map.onpointermove = go;
    map.onpointerup = () => { map.onpointermove = null; };
    go(event);
  }, { signal });
  onKeys(scroll, (key, event) => {
    const head = store.get("playhead"), at = head < 0 ? data.n - 1 : head;
    const { down } = arrow(key), to = down ? clamp(at + 10 * down, 0, data.n - 1) : stepOf(key, at, data.n - 1, 100);
    if (key === "Escape") { store.clear(); return true; }
    if (key === "s" && at >= 0) { const kind = KINDS[data.column.kinds[at]]; turnSegment(kind); live.textContent = store.get("segment") ? `all of ${NAMES[kind]}` : "no part chosen"; return true; }
    if (key === "Enter" && head >= 0 && event.target === scroll) { store.pin({ playhead: head }); return true; }
    if (to === null || !data.n) return false;
    if (event.shiftKey) store.reach(at, to);
    store.hover({ playhead: to });
    const b = blockOf(blocks, to);
    following = false;
    if (sums[b] < scroll.scrollTop || sums[b + 1] > scroll.scrollTop + scroll.clientHeight) { scroll.scrollTop = Math.max(0, sums[b] - 60); layout(scroll.scrollTop); }
    list.querySelector(`[data-i="${to}"]`)?.scrollIntoView({ block: "nearest" });
    live.textContent = `${visible(data.texts[to])}, ${tokenFacts(data, to).map((fact) => fact.join(" ")).join(", ")}`;
    return true;
  }, signal);

  store.listen(paint, signal);
  onTheme(repaint, signal);
  onSize(root, () => {
    if (!root.clientWidth || root.clientWidth === wide) { relay(); return; }
    wide = root.clientWidth;
    resize();
  }, signal);
  paint();
}

export default storeView(fill);
