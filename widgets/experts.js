import { clamp, decimal, KINDS, NAMES, percent } from "./_numbers.js";
import { calm, gradient, ramp } from "./_colour.js";
import { choice, el, latest, onKeys, setText, storeView, traitChoice } from "./_kit.js";
import { picturePanel } from "./_panel.js";
import { fillBox, pixels, putText, strokeBox } from "./_pen.js";

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
  const left = 34, top = 20, bar = width < 720 ? 50 : 56, shown = width - left - 3 * bar - 16 >= experts / ratio ? 3 : 1, bars = shown * bar + 10;
  const room = Math.max(40, width - left - bars - 6);
  const cell = clamp(Math.floor((room * ratio) / Math.max(1, experts)) / ratio, 1 / ratio, 18);
  const line = clamp(Math.floor(336 / Math.max(1, rows)), 5, 36);
  const right = left + cell * experts;
  return { left, top, cell, line, right, bar, bars: shown, barsAt: right + 12, width: Math.ceil(right + 12 + bars), height: top + line * rows + 20, gap: cell >= 5 && line >= 8 ? 1 : 0 };
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

/** For each row the experts in the order of the columns: by number, or by falling value. @param {ArrayLike<number>} values */
export function orders(values, rows, experts, sort) {
  return Array.from({ length: rows }, (_, row) => {
    const order = Uint16Array.from({ length: experts }, (_, i) => i);
    return sort === "id" ? order : order.sort((a, b) => values[row * experts + b] - values[row * experts + a] || a - b);
  });
}

/** A load as shares of its largest entry. @param {Uint32Array} load */
export function shares(load) {
  const values = new Float32Array(load.length); // loops: `from` and `reduce` call a function for each of 23,040 cells
  let most = 1;
  for (let i = 0; i < load.length; i++) if (load[i] > most) most = load[i];
  for (let i = 0; i < load.length; i++) values[i] = load[i] / most;
  return { most, values };
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
    const even = data.evenness(load, row), counts = load.subarray(row * data.experts, (row + 1) * data.experts);
    const total = counts.reduce((sum, count) => sum + count, 0);
    const busiest = orders(load, data.rows, data.experts, "load")[row].slice(0, 5);
    return [String(row + data.dense), even ? decimal(even.entropy, 3) : "–", even ? decimal(even.gini, 3) : "–", even ? percent(even.dormant) : "–",
      total ? [...busiest].map((expert) => `${expert} (${percent(counts[expert] / total)})`).join(", ") : "–"];
  });
}

// ---------------------------------------------------------------- drawing

function draw(pen, at, ink, { data, order, shown, even, colours, row, expert, token, pin, sort, scratch }) {
  const { rows, experts } = data, share = shown.both ? (value) => (value + 1) / 2 : (value) => value;
  const holds = [shown.values, order, colours];
  if (holds.some((one, i) => one !== scratch.holds[i])) { pixels(scratch.canvas, rows, experts, (r, c) => share(shown.values[r * experts + order[r][c]]), colours); scratch.holds = holds; }
  pen.drawImage(scratch.canvas, at.left, at.top, at.cell * experts, at.line * rows);
  if (at.gap) {
    for (let c = 1; c < experts; c++) fillBox(pen, ink.bg, [at.left + c * at.cell - 1, at.top, 1, at.line * rows]);
    for (let r = 1; r < rows; r++) fillBox(pen, ink.bg, [at.left, at.top + r * at.line - 1, at.cell * experts, 1]);
  }
  axes(pen, at, ink, data, sort);
  bars(pen, at, ink, even);
  const frame = (r, e, colour, width) => { // width below 0: inside the cell
    const x = at.left + order[r].indexOf(e) * at.cell, y = at.top + r * at.line, w = Math.max(at.cell - at.gap, 3), h = at.line - at.gap;
    strokeBox(pen, colour, [x - width / 2, y - width / 2, w + width, h + width], Math.abs(width));
  };
  if (token >= 0 && at.cell >= 4) for (let r = 0; r < rows; r++) for (const one of data.choices(token, r)) { frame(r, one.expert, "#000", 1); frame(r, one.expert, "#fff", -1); }
  if (pin[0] >= 0 && pin[0] < rows && pin[1] >= 0 && pin[1] < experts) frame(pin[0], pin[1], ink.pin, 2);
  if (row >= 0 && expert >= 0 && expert < experts) { frame(row, expert, ink.bg, 4); frame(row, expert, ink.pin, 2); }
}

function axes(pen, at, ink, { rows, experts, dense }, sort) {
  const every = Math.max(1, Math.ceil(13 / at.line) * (at.line < 13 ? 3 : 1));
  pen.font = `11px ${ink.sans}`;
  pen.textBaseline = "middle";
  for (let r = 0; r < rows; r += every) putText(pen, ink.dim, `L${r + dense}`, at.left - 6, at.top + (r + 0.5) * at.line, "right");
  pen.textBaseline = "top"; pen.textAlign = "left";
  const below = at.top + rows * at.line + 5, words = { load: "busiest expert of each layer first", affinity: "thinking first, answer last, in each layer" }[sort];
  if (words) { pen.fillText(words, at.left, below); return; }
  pen.textAlign = "center";
  for (let c = 0, step = tickStep(at.cell, experts); c < experts; c += step) pen.fillText(String(c), at.left + (c + 0.5) * at.cell, below);
}

function bars(pen, at, ink, even) {
  const columns = [["entropy", "entropy", decimal], ["gini", "Gini", decimal], ["dormant", "dormant", percent]].slice(0, at.bars);
  pen.font = `11px ${ink.sans}`;
  columns.forEach(([name, label, words], i) => {
    const x = at.barsAt + i * at.bar, width = at.bar - 8;
    pen.textBaseline = "alphabetic";
    putText(pen, ink.dim, label, x, at.top - 6, "left", width);
    even.forEach((one, r) => {
      if (!one) return;
      const y = at.top + r * at.line;
      fillBox(pen, ink.soft, [x, y, Math.max(0.5, one[name] * width), at.line - 1]);
      if (at.line < 14) return;
      pen.textBaseline = "middle";
      putText(pen, ink.fg, words(one[name]), x + 3, y + at.line / 2);
    });
  });
}

// ---------------------------------------------------------------- the widget

function fill(view) {
  const { model, store, root, signal } = view, scratch = { canvas: document.createElement("canvas"), holds: [] }; // values, order, colours
  root.classList.add("k2-experts");
  const [ordered, evened, brushed, whole] = [latest(), latest(), latest(), latest()];
  let data = store.data, order = [], glow = new Float32Array(0), glowAt = 0, glowSeen = 0, problem = "";
  const box = el("input.k2-input.k2-search", { type: "search", placeholder: "L3 E12", "aria-label": "Find an expert, such as L3 E12" });
  const low = el("span"), high = el("span"), swatch = el("span.k2-ramp");
  const trait = (name, label, options) => traitChoice(view, name, label, options, () => panel.paint());
  const panel = picturePanel(view, {
    name: "ExpertMap", label: "Routed experts by layer. Arrow keys move, Enter pins, Escape clears, slash searches.",
    tools: [trait("mode", "Show", Object.entries(MODES)), trait("sort", "Sort", [["id", "by id"], ["load", "by load"], ["affinity", "by affinity"]]),
      choice("Palette", [["cividis", "cividis"], ["viridis", "viridis"]], store.get("palette"), (palette) => { store.select({ palette }); }, signal), box],
    content,
    at: (x, y, at) => { const cell = cellAt(at, x, y, data.rows, data.experts); return cell && { layer: cell.row + data.dense, expert: order[cell.row][cell.column] }; },
    hover: (cell) => { problem = ""; store.hover(cell); }, click: (cell) => store.pin(cell), keys,
  });
  panel.foot.append(el("span.k2-legend", {}, low, swatch, high));

  /** What is to be shown: values 0 … 1 (or −1 … 1), the load behind the bars, legend, or why not. */
  function chosen(mode, token, now) {
    const { load, counted } = data, range = store.range();
    if (mode === "token") return { values: glowing(token, now), load: load.all, low: "not chosen", high: `weight ${decimal(2 / data.slots)}` };
    if (mode === "range") {
      const segment = store.get("segment") ?? "";
      if (!range && !segment) return { why: "Select some text (drag over it, or Shift and arrow keys), or a part by its letter, to see which experts it used." };
      const { load, tokens, values, most } = brushed(`${known()}|${range ?? segment}`, () => {
        const found = range ? { load: data.loadOf(...range), tokens: Math.min(range[1], data.m) - range[0] } : data.loadOfKind(KINDS.indexOf(segment));
        return { ...found, ...shares(found.load) };
      });
      return { values, load, low: "0", high: `${percent(most / Math.max(1, tokens))} of ${range ? `tokens ${range[0]} to ${range[1] - 1}` : `${tokens} tokens, all of ${NAMES[segment]}`}` };
    }
    if (mode === "difference") {
      if (!counted.thinking || !counted.answer) return { why: `There are no ${counted.thinking ? "answer" : "thinking"} tokens with routing yet, so there is nothing to compare.` };
      const { values, most } = whole(`difference|${known()}`, () => { const { most, values } = data.difference(); return { most, values: values.map((value) => value / (most || 1)) }; });
      return { values, load: load.all, both: true, low: `answer +${percent(most)}`, high: `thinking +${percent(most)}` };
    }
    const { values, most } = whole(known(), () => shares(load.all));
    return { values, load: load.all, low: "0", high: `${percent(most / Math.max(1, counted.all))} of tokens` };
  }

  /** Changes when more tokens have come, and with another run. */
  const known = () => `${store.epoch}|${data.m}`;

  /** The token's weights; those of tokens just before it fade, unless motion is unwanted. */
  function glowing(token, now) {
    if (glow.length !== data.rows * data.experts) { glow = new Float32Array(data.rows * data.experts); glowSeen = token; }
    const fade = calm() || store.get("playhead") >= 0 ? 0 : 0.5 ** ((now - glowAt) / 150);
    glow = glow.map((value) => (value * fade < 0.02 ? 0 : value * fade));
    for (let t = Math.max(0, token - 8, Math.min(glowSeen, token - 1) + 1); t < token && fade; t++) data.weightsOf(t).forEach((value, i) => { if (value) glow[i] = Math.max(glow[i], value); });
    data.weightsOf(token).forEach((value, i) => { if (value) glow[i] = value; });
    glowSeen = token; glowAt = now;
    return glow.map((value) => Math.min(1, (value * data.slots) / 2));
  }

  function content(now) {
    if (store.data !== data) { data = store.data; glow = new Float32Array(0); }
    const { rows, experts } = data, kind = MODES[model.get("mode")] ? model.get("mode") : "all", sort = model.get("sort") ?? "id", running = store.status.state === "running";
    const head = store.get("playhead"), token = store.token(data.m);
    const shown = store.unrouted ? { why: store.unrouted } : chosen(kind, token, now);
    if (shown.why) return shown;
    setText(low, shown.low);
    setText(high, shown.high);
    order = ordered(`${known()}|${sort}`, () => orders(sort === "affinity" ? data.difference().values : data.load.all, rows, experts, sort));
    const even = evened(`${known()}|${kind === "range" ? store.range() ?? store.get("segment") : ""}`, () => Array.from({ length: rows }, (_, r) => data.evenness(shown.load, r)));
    const row = store.row(), expert = store.get("expert"), [, layer, pinned] = store.pinned();
    if (kind === "token" && !calm() && head < 0 && running) panel.paint();
    return {
      place: (width, ratio) => place(width, rows, experts, ratio),
      paint: (pen, at, ink) => {
        const colours = ramp(shown.both ? "diverging" : store.get("palette"), ink.dark);
        const back = gradient(colours);
        if (swatch.dataset.back !== back) { swatch.dataset.back = back; swatch.style.background = back; }
        draw(pen, at, ink, { data, order, shown, even, colours, row, expert, token: head >= 0 || running ? token : -1, pin: [layer - data.dense, pinned], sort, scratch });
      },
      table: () => ({ caption: `Load of the routed experts: ${kind !== "range" ? "whole run" : store.range() ? `tokens ${store.range()?.join(" to ")}` : NAMES[store.get("segment")]}`, head: ["layer", "load entropy", "Gini", "dormant", "busiest experts (share of choices)"], rows: layerRows(data, shown.load) }),
      words: problem || (row >= 0 && expert >= 0 ? cellWords(data, row, expert, token) : `${kind === "token" ? `Token ${token}: ${JSON.stringify(data.texts[token])}. ` : ""}Point at a cell to see the tokens that used it.`),
    };
  }

  // ---- keys and search
  const say = (row, expert) => panel.say(cellWords(data, row, expert, store.get("playhead")));
  function keys(key) {
    const { rows, experts } = data;
    if (!rows || !order.length) return false;
    if (key === "/") { box.focus(); return true; }
    const row = Math.max(0, store.row()), column = store.get("expert") < 0 ? 0 : order[row].indexOf(store.get("expert"));
    if (key === "Enter" && store.get("expert") >= 0) { store.pin({ layer: row + data.dense, expert: store.get("expert") }); return true; }
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -experts], End: [0, experts] };
    if (!(key in moves)) return false;
    const fresh = store.get("expert") < 0, [down, right] = fresh ? [0, 0] : moves[key];
    const to = clamp(row + down, 0, rows - 1), expert = order[to][clamp(column + right, 0, experts - 1)];
    store.hover({ layer: to + data.dense, expert });
    say(to, expert);
    return true;
  }
  box.addEventListener("keydown", (event) => { if (event.key.length === 1) event.stopPropagation(); }, { signal });
  box.addEventListener("input", () => {
    const found = box.value.trim() ? search(box.value, data) : {};
    problem = found.problem ?? "";
    if (found.layer !== undefined || found.expert !== undefined) store.hover({ layer: found.layer ?? data.dense + Math.max(0, store.row()), expert: found.expert ?? Math.max(0, store.get("expert")) });
    panel.paint();
  }, { signal });
  onKeys(box, (key) => {
    if (key === "Enter" && !problem && box.value.trim() && store.row() >= 0) { store.pin({ layer: store.get("layer"), expert: store.get("expert") }); say(store.row(), store.get("expert")); return true; }
    if (key === "Escape") { box.value = ""; problem = ""; store.clear(); panel.grid.focus(); return true; }
    return false;
  }, signal);
}

export default storeView(fill);
