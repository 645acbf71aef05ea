import { calm, choice, clamp, css, decimal, el, gradient, isDark, onKeys, onTheme, painter, percent, ramp, statusLine, storeView, table, toggle } from "./_kit.js";

/**
 * ExpertMap: layers × routed experts as one picture. The last token, the whole run, the selected
 * tokens, or thinking − answer; beside it how even each layer's load is. Load is use, not cause.
 * Not here: the data and its counting (store.js).
 */

/** What the map can show. */
export const MODES = { all: "Whole run", token: "Token", range: "Selection", difference: "Thinking − answer" };

// ---------------------------------------------------------------- geometry and data (pure)

/**
 * Where everything lies, in CSS px.
 * @param {number} width @param {number} rows @param {number} experts @param {number} [ratio] device pixels per px
 */
export function place(width, rows, experts, ratio = 1) {
  const left = 34, top = 20, bar = width < 720 ? 50 : 56, bars = 3 * bar + 10;
  const room = Math.max(40, width - left - bars - 6);
  const cell = clamp(Math.floor((room * ratio) / Math.max(1, experts)) / ratio, 1 / ratio, 18);
  const line = clamp(Math.floor(336 / Math.max(1, rows)), 5, 26);
  const right = left + cell * experts;
  return { left, top, cell, line, right, bar, barsAt: right + 12, width: Math.ceil(right + 12 + bars), height: top + line * rows + 20, gap: cell >= 5 && line >= 8 ? 1 : 0 };
}

/** Row and column at a point, or null. @param {ReturnType<typeof place>} at */
export function cellAt(at, x, y, rows, experts) {
  const row = Math.floor((y - at.top) / at.line), column = Math.floor((x - at.left) / at.cell);
  return row >= 0 && row < rows && column >= 0 && column < experts ? { row, column } : null;
}

/** Step between axis labels that keeps them apart. @param {number} cell @param {number} experts */
export function tickStep(cell, experts) {
  return [1, 2, 4, 8, 16, 32, 64, 128].find((step) => step * cell >= 34 || step >= experts) ?? 128;
}

/** For each row the experts in the order of the columns. @param {Uint32Array} load */
export function orders(load, rows, experts, sort) {
  return Array.from({ length: rows }, (_, row) => {
    const order = Uint16Array.from({ length: experts }, (_, i) => i);
    return sort === "load" ? order.sort((a, b) => load[row * experts + b] - load[row * experts + a] || a - b) : order;
  });
}

/** How even a row's load is: entropy (1: even), Gini (0: even), dormant share; null without load. */
export function evenness(load, row, experts) {
  const counts = Array.from(load.subarray(row * experts, (row + 1) * experts)).sort((a, b) => a - b);
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  let entropy = 0, gini = 0, dormant = 0;
  counts.forEach((count, i) => {
    const share = count / total;
    if (count) entropy -= share * Math.log(share); else dormant++;
    gini += (2 * (i + 1) - experts - 1) * share;
  });
  return { entropy: entropy / Math.log(experts), gini: gini / experts, dormant: dormant / experts };
}

/** Differences of load shares, thinking − answer [row × expert], and the largest size. */
export function difference(data) {
  const { rows, experts, load } = data, values = new Float32Array(rows * experts);
  const perRow = (kind) => Math.max(1, data.counted[kind] * data.slots);
  let most = 0;
  for (let i = 0; i < values.length; i++) {
    values[i] = load.thinking[i] / perRow("thinking") - load.answer[i] / perRow("answer");
    most = Math.max(most, Math.abs(values[i]));
  }
  return { values, most };
}

/** Weights of one token's choices [row × expert]. */
export function tokenValues(data, token) {
  const values = new Float32Array(data.rows * data.experts);
  for (let row = 0; row < data.rows; row++) for (const { expert, weight } of data.choices(token, row)) values[row * data.experts + expert] = weight;
  return values;
}

/** What a search means: "12", "L3", "L3 E12", "3.12". @returns {{layer?: number, expert?: number, problem?: string}} */
export function search(text, data) {
  const match = text.trim().match(/^(?:l(?:ayer)?\s*(\d+))?[\s.,/·]*(?:e(?:xpert)?\s*)?(\d+)?$/i) ?? [];
  const pair = text.trim().match(/^(\d+)\s*[.,/· ]\s*(\d+)$/);
  const layer = pair?.[1] ?? match[1], expert = pair?.[2] ?? match[2];
  if (layer === undefined && expert === undefined) return { problem: "Write an expert (12), a layer (L3) or both (L3 E12)." };
  const found = {};
  if (layer !== undefined) found.layer = Number(layer);
  if (expert !== undefined) found.expert = Number(expert);
  const last = data.dense + data.rows - 1;
  if (found.layer !== undefined && (found.layer < data.dense || found.layer > last)) return { problem: `Layer ${layer} has no routed experts; layers ${data.dense} to ${last} have.` };
  if (found.expert !== undefined && found.expert >= data.experts) return { problem: `No expert ${expert}; there are 0 to ${data.experts - 1}.` };
  return found;
}

/** A cell in words, with the token's weight where it was chosen. */
export function cellWords(data, row, expert, token = -1) {
  const i = row * data.experts + expert, { load, counted } = data, even = data.slots / data.experts;
  const share = (kind) => (counted[kind] ? percent(load[kind][i] / counted[kind]) : "–");
  const all = counted.all ? load.all[i] / counted.all : NaN;
  const words = [`Layer ${row + data.dense} · expert ${expert}`, `${share("all")} of tokens (${load.all[i]} of ${counted.all}; ${decimal(all / even, 1)} × even)`, `thinking ${share("thinking")}`, `answer ${share("answer")}`];
  const choices = data.choices(token, row), rank = choices.findIndex((one) => one.expert === expert);
  if (rank >= 0) words.push(`token ${token}: rank ${rank + 1}, weight ${decimal(choices[rank].weight)}`);
  return words.join(" · ");
}

/** Rows of the table: one per layer. */
export function layerRows(data, load) {
  return Array.from({ length: data.rows }, (_, row) => {
    const even = evenness(load, row, data.experts), counts = load.subarray(row * data.experts, (row + 1) * data.experts);
    const total = counts.reduce((sum, count) => sum + count, 0);
    const busiest = orders(load, data.rows, data.experts, "load")[row].slice(0, 5);
    return [String(row + data.dense), even ? decimal(even.entropy, 3) : "–", even ? decimal(even.gini, 3) : "–", even ? percent(even.dormant) : "–",
      total ? [...busiest].map((expert) => `${expert} (${percent(counts[expert] / total)})`).join(", ") : "–"];
  });
}

// ---------------------------------------------------------------- the widget

function fill({ model, store, root, signal, fail }) {
  root.classList.add("k2-experts");
  let data = store.data, at = place(600, 0, 0), order = [], asTable = false, brush = { key: "", load: new Uint32Array(0) };
  let glow = new Float32Array(0), glowAt = 0, glowSeen = 0, spoken = "", problem = "";
  const picture = document.createElement("canvas");

  const paint = painter(draw, signal, fail);
  const set = (name) => (value) => { model.set(name, value); model.save_changes(); paint(); };
  const box = el("input", { class: "k2-input k2-search", type: "search", placeholder: "L3 E12", "aria-label": "Find an expert, such as L3 E12" });
  const low = el("span"), high = el("span"), swatch = el("span", { class: "k2-ramp" });
  const tools = el("div", { class: "k2-tools" },
    choice("Show", Object.entries(MODES), model.get("mode"), set("mode"), signal),
    choice("Sort", [["id", "by id"], ["load", "by load"]], model.get("sort"), set("sort"), signal),
    choice("Palette", [["cividis", "cividis"], ["viridis", "viridis"]], store.get("palette"), (palette) => { store.select({ palette }); }, signal),
    box, el("span", { class: "k2-gap" }), toggle("Table", (on) => { asTable = on; paint(); }, signal));
  const canvas = el("canvas", { "aria-hidden": "true" });
  const spot = el("div", { role: "gridcell", id: `k2-cell-${Math.floor(performance.now() * 1000)}` });
  const grid = el("div", { class: "k2-grid", role: "grid", tabindex: 0, "aria-label": "Routed experts by layer. Arrow keys move, Enter pins, Escape clears." },
    el("div", { role: "row", class: "k2-hidden" }, spot), canvas);
  const empty = el("p", { class: "k2-empty", hidden: true });
  const readout = el("p", { class: "k2-readout" }), live = el("p", { class: "k2-hidden", "aria-live": "polite" });
  const pane = el("div", { class: "k2-table-pane", hidden: true, tabindex: 0, role: "region", "aria-label": "Layers as a table" });
  root.append(statusLine(store, signal), tools, empty, grid, pane, el("div", { class: "k2-foot" }, readout, el("span", { class: "k2-legend" }, low, swatch, high)), live);

  /** What is to be shown: values 0 … 1 (or −1 … 1), the load behind the bars, legend, or why not. */
  function content(mode, token, now) {
    const { load, counted } = data, range = store.range();
    if (mode === "token") {
      const values = glowing(token, now);
      return { values, load: load.all, low: "not chosen", high: `weight ${decimal(2 / data.slots)}` };
    }
    if (mode === "range") {
      if (!range) return { why: "Select some text in the ThoughtStream (drag over it, or Shift and arrow keys) to see which experts it used." };
      const stop = Math.min(range[1], data.m), key = `${range}|${data.m}`;
      if (brush.key !== key) brush = { key, load: data.count(new Uint32Array(load.all.length), Math.min(range[0], stop), stop) };
      const most = brush.load.reduce((a, b) => Math.max(a, b), 1), tokens = Math.max(1, stop - range[0]);
      return { values: Float32Array.from(brush.load, (n) => n / most), load: brush.load, low: "0", high: `${percent(most / tokens)} of tokens ${range[0]} to ${range[1] - 1}` };
    }
    if (mode === "difference") {
      if (!counted.thinking || !counted.answer) return { why: `There are no ${counted.thinking ? "answer" : "thinking"} tokens with routing yet, so there is nothing to compare.` };
      const { values, most } = difference(data);
      return { values: values.map((value) => value / (most || 1)), load: load.all, both: true, low: `answer +${percent(most)}`, high: `thinking +${percent(most)}` };
    }
    const most = load.all.reduce((a, b) => Math.max(a, b), 1);
    return { values: Float32Array.from(load.all, (n) => n / most), load: load.all, low: "0", high: `${percent(most / Math.max(1, counted.all))} of tokens` };
  }

  /** The token's weights; those of tokens just before it fade, unless motion is unwanted. */
  function glowing(token, now) {
    if (glow.length !== data.rows * data.experts) { glow = new Float32Array(data.rows * data.experts); glowSeen = token; }
    const fade = calm() || store.get("playhead") >= 0 ? 0 : 0.5 ** ((now - glowAt) / 150);
    glow = glow.map((value) => (value * fade < 0.02 ? 0 : value * fade));
    for (let t = Math.max(0, token - 8, Math.min(glowSeen, token - 1) + 1); t < token && fade; t++) tokenValues(data, t).forEach((value, i) => { if (value) glow[i] = Math.max(glow[i], value); });
    tokenValues(data, token).forEach((value, i) => { if (value) glow[i] = value; });
    glowSeen = token; glowAt = now;
    return glow.map((value) => Math.min(1, (value * data.slots) / 2));
  }

  function draw(now) {
    if (store.data !== data) { data = store.data; glow = new Float32Array(0); brush.key = ""; }
    const { rows, experts } = data, mode = MODES[model.get("mode")] ? model.get("mode") : "all", status = store.get("status") ?? {};
    const head = store.get("playhead"), token = head >= 0 && head < data.m ? head : data.m - 1;
    const shown = data.m ? content(mode, token, now) : { why: !rows || !experts ? "This model has no layers with routed experts." : status.state === "running" ? "The first routing comes with the first tokens." : "No routing was captured in this run (capture level “off”)." };
    for (const node of tools.querySelectorAll("select")) if (node.getAttribute("aria-label") === "Show" && node.value !== mode) node.value = mode;
    empty.hidden = !shown.why; empty.textContent = shown.why ?? "";
    grid.hidden = !!shown.why || asTable; pane.hidden = !!shown.why || !asTable;
    readout.parentElement.hidden = !!shown.why;
    if (shown.why) return;
    [low.textContent, high.textContent] = [shown.low, shown.high];
    const style = getComputedStyle(root), dark = isDark(style.backgroundColor), colours = ramp(shown.both ? "diverging" : store.get("palette"), dark);
    swatch.style.background = gradient(colours);
    order = orders(data.load.all, rows, experts, model.get("sort"));
    const row = store.row(), expert = store.get("expert");
    readout.textContent = problem || (row >= 0 && expert >= 0 ? cellWords(data, row, expert, token) : `${mode === "token" ? `Token ${token}: ${JSON.stringify(data.texts[token])}. ` : ""}Point at a cell to see the tokens that used it.`);
    if (asTable) { pane.replaceChildren(table(`Load of the routed experts: ${mode === "range" ? `tokens ${store.range().join(" to ")}` : "whole run"}`, ["layer", "load entropy", "Gini", "dormant", "busiest experts (share of choices)"], layerRows(data, shown.load))); return; }
    const outlined = head >= 0 || status.state === "running" ? token : -1;
    render(shown, colours, style, row, expert, outlined);
    if (mode === "token" && !calm() && head < 0 && status.state === "running") paint();
  }

  function render(shown, colours, style, row, expert, token) {
    const { rows, experts } = data, ratio = devicePixelRatio || 1;
    at = place(grid.clientWidth, rows, experts, ratio);
    if (canvas.width !== Math.round(at.width * ratio) || canvas.height !== Math.round(at.height * ratio)) {
      canvas.width = Math.round(at.width * ratio); canvas.height = Math.round(at.height * ratio);
      canvas.style.width = `${at.width}px`; canvas.style.height = `${at.height}px`;
    }
    if (picture.width !== experts || picture.height !== rows) { picture.width = experts; picture.height = rows; }
    const small = picture.getContext("2d"), image = small.createImageData(experts, rows);
    for (let r = 0; r < rows; r++) for (let c = 0; c < experts; c++) {
      const value = shown.values[r * experts + order[r][c]], level = Math.round((shown.both ? (value + 1) / 2 : value) * 255) * 3;
      image.data.set([colours[level], colours[level + 1], colours[level + 2], 255], (r * experts + c) * 4);
    }
    small.putImageData(image, 0, 0);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, at.width, at.height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, at.left, at.top, at.cell * experts, at.line * rows);
    if (at.gap) {
      pen.fillStyle = style.backgroundColor;
      for (let c = 1; c < experts; c++) pen.fillRect(at.left + c * at.cell - 1, at.top, 1, at.line * rows);
      for (let r = 1; r < rows; r++) pen.fillRect(at.left, at.top + r * at.line - 1, at.cell * experts, 1);
    }
    axes(pen, style);
    bars(pen, style, shown.load);
    outlines(pen, style, row, expert, token);
  }

  function axes(pen, style) {
    const { rows, experts } = data, every = Math.max(1, Math.ceil(13 / at.line) * (at.line < 13 ? 3 : 1));
    pen.font = `11px ${style.fontFamily}`;
    pen.fillStyle = style.getPropertyValue("--k2-dim").trim() || style.color;
    pen.textBaseline = "middle"; pen.textAlign = "right";
    for (let r = 0; r < rows; r += every) pen.fillText(`L${r + data.dense}`, at.left - 6, at.top + (r + 0.5) * at.line);
    pen.textAlign = "center"; pen.textBaseline = "top";
    if (model.get("sort") === "load") { pen.textAlign = "left"; pen.fillText("busiest expert of each layer first", at.left, at.top + rows * at.line + 5); return; }
    for (let c = 0, step = tickStep(at.cell, experts); c < experts; c += step) pen.fillText(String(c), at.left + (c + 0.5) * at.cell, at.top + rows * at.line + 5);
  }

  function bars(pen, style, load) {
    const columns = [["entropy", "entropy", decimal], ["gini", "Gini", decimal], ["dormant", "dormant", percent]];
    const soft = style.getPropertyValue("--k2-bar").trim() || "#8aa", ink = style.getPropertyValue("--k2-dim").trim() || style.color;
    pen.textAlign = "left"; pen.font = `11px ${style.fontFamily}`;
    columns.forEach(([name, label, words], i) => {
      const x = at.barsAt + i * at.bar, width = at.bar - 8;
      pen.fillStyle = ink; pen.textBaseline = "alphabetic";
      pen.fillText(label, x, at.top - 6, width);
      for (let r = 0; r < data.rows; r++) {
        const even = evenness(load, r, data.experts), y = at.top + r * at.line;
        if (!even) continue;
        pen.fillStyle = soft;
        pen.fillRect(x, y, Math.max(0.5, even[name] * width), at.line - 1);
        if (at.line < 14) continue;
        pen.fillStyle = style.color; pen.textBaseline = "middle";
        pen.fillText(words(even[name]), x + 3, y + at.line / 2);
      }
    });
  }

  const columnOf = (row, expert) => order[row].indexOf(expert);

  function outlines(pen, style, row, expert, token) {
    const frame = (r, e, colour, width) => {
      const x = at.left + columnOf(r, e) * at.cell, y = at.top + r * at.line, w = Math.max(at.cell - at.gap, 3), h = at.line - at.gap;
      pen.strokeStyle = colour; pen.lineWidth = Math.abs(width); // negative: inside the cell
      pen.strokeRect(x - width / 2, y - width / 2, w + width, h + width);
    };
    if (token >= 0 && at.cell >= 4) for (let r = 0; r < data.rows; r++) for (const one of data.choices(token, r)) { frame(r, one.expert, "#000", 1); frame(r, one.expert, "#fff", -1); }
    const [, layer, pinned] = store.pinned(), pinRow = layer - data.dense;
    if (pinRow >= 0 && pinRow < data.rows && pinned >= 0) frame(pinRow, pinned, "#d55e00", 2);
    if (row >= 0 && expert >= 0 && expert < data.experts) { frame(row, expert, style.backgroundColor, 4); frame(row, expert, "#d55e00", 2); }
  }

  // ---- pointer, keys, search
  const pointed = (event) => {
    const box = canvas.getBoundingClientRect(), cell = cellAt(at, event.clientX - box.left, event.clientY - box.top, data.rows, data.experts);
    return cell && { layer: cell.row + data.dense, expert: order[cell.row][cell.column] };
  };
  canvas.addEventListener("pointermove", (event) => { const cell = pointed(event); problem = ""; if (cell) store.hover(cell); else store.leave(); }, { signal });
  canvas.addEventListener("pointerleave", () => store.leave(), { signal });
  canvas.addEventListener("click", (event) => { const cell = pointed(event); if (cell) store.pin(cell); }, { signal });

  function say(row, expert) {
    const words = cellWords(data, row, expert, store.get("playhead"));
    if (words !== spoken) { spoken = words; spot.textContent = words; live.textContent = words; grid.setAttribute("aria-activedescendant", spot.id); }
  }
  onKeys(grid, (key) => {
    const { rows, experts } = data;
    if (key === "Escape") { store.clear(); return true; }
    if (!rows || !order.length) return false;
    const row = Math.max(0, store.row()), column = store.get("expert") < 0 ? 0 : columnOf(row, store.get("expert"));
    if (key === "Enter" && store.get("expert") >= 0) { store.pin({ layer: row + data.dense, expert: store.get("expert") }); return true; }
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -experts], End: [0, experts] };
    if (key === "/") { box.focus(); return true; }
    if (!(key in moves)) return false;
    const fresh = store.get("expert") < 0, [down, right] = fresh ? [0, 0] : moves[key];
    const to = clamp(row + down, 0, rows - 1), expert = order[to][clamp(column + right, 0, experts - 1)];
    store.hover({ layer: to + data.dense, expert });
    say(to, expert);
    return true;
  }, signal);
  box.addEventListener("keydown", (event) => { if (event.key.length === 1) event.stopPropagation(); }, { signal });
  box.addEventListener("input", () => {
    const found = box.value.trim() ? search(box.value, data) : {};
    problem = found.problem ?? "";
    if (found.layer !== undefined || found.expert !== undefined) store.hover({ layer: found.layer ?? data.dense + Math.max(0, store.row()), expert: found.expert ?? Math.max(0, store.get("expert")) });
    paint();
  }, { signal });
  onKeys(box, (key) => {
    if (key === "Enter" && !problem && box.value.trim() && store.row() >= 0) { store.pin({ layer: store.get("layer"), expert: store.get("expert") }); say(store.row(), store.get("expert")); return true; }
    if (key === "Escape") { box.value = ""; problem = ""; store.clear(); grid.focus(); return true; }
    return false;
  }, signal);

  store.listen(paint, signal);
  for (const name of ["mode", "sort"]) model.on(`change:${name}`, paint);
  onTheme(paint, signal);
  const observer = new ResizeObserver(paint);
  observer.observe(root);
  signal.addEventListener("abort", () => { observer.disconnect(); for (const name of ["mode", "sort"]) model.off(`change:${name}`, paint); });
  paint();
}

export default storeView(fill);
