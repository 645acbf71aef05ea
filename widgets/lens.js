import { clamp, decimal, half, signed } from "./_numbers.js";
import { BLUE, css, ORANGE, ramp } from "./_colour.js";
import { storeView, traitChoice } from "./_kit.js";
import { arrow, picturePanel, stepOf } from "./_panel.js";
import { fillBox, putText, strokeBox } from "./_pen.js";
import { tray } from "./_tray.js";

/**
 * RouteLens: one token through all routers. Per layer the chosen experts in order and those that
 * nearly were; the margin between them; the path through the experts; for the layer in focus, score,
 * bias and mixing weight apart. Edits go to the tray. Not here: how scores come about
 * (engine/replay.py) and what an edit does (engine/edits.py).
 */

const RUNNERS = 3; // not chosen, nearest to being chosen
const GAP = 18; // px between the chosen and the others, for the margin
const SLOW = "Scores and bias are being computed …";

// ---------------------------------------------------------------- data (pure)

/**
 * One layer of the picture: chosen experts as recorded, runners-up from the scores.
 * @typedef {{expert: number, weight: number, score: number, bias: number, chosen: boolean}} Mark NaN: unknown
 * @param {any} data @param {number} token @param {number} row @param {Record<string, any> | null} arrays `scores` and `choice`
 * @returns {{marks: Mark[], margin: number}}
 */
export function layerOf(data, token, row, arrays) {
  const from = row * data.experts, known = arrays?.scores;
  const mark = (expert, weight, chosen) => ({ expert, weight, chosen, score: known ? known[from + expert] : NaN, bias: known ? arrays.choice[from + expert] - known[from + expert] : NaN });
  const chosen = data.choices(token, row).map(({ expert, weight }) => mark(expert, weight, true));
  const margin = token < data.m ? half(data.column.margin[token * data.rows + row]) : NaN;
  if (!known) return { marks: chosen, margin };
  const taken = new Set(chosen.map((one) => one.expert)), best = [];
  for (let expert = 0; expert < data.experts; expert++) {
    const value = arrays.choice[from + expert];
    if (taken.has(expert) || !Number.isFinite(value) || (best.length === RUNNERS && value <= arrays.choice[from + best[RUNNERS - 1]])) continue;
    best.push(expert);
    best.sort((a, b) => arrays.choice[from + b] - arrays.choice[from + a]);
    best.length = Math.min(best.length, RUNNERS);
  }
  return { marks: [...chosen, ...best.map((expert) => mark(expert, NaN, false))], margin };
}

/** How near a tie is, 0 (clear) … 1 (tie): margins span decades. @param {number} margin */
export function tie(margin) { return clamp(-(Math.log10(Math.max(margin, 1e-5)) + 1) / 4, 0, 1); }

/**
 * Where everything lies, in CSS px. The layer in focus stands right of the chips, beside its line; where
 * there is no room, below them, or, of many, over those next to its line.
 * @param {number} width @param {number} rows @param {number} slots @param {number} marks in the layer in focus
 * @param {number} [spot] its line; −1: nobody points at one
 */
export function place(width, rows, slots, marks, spot = -1) {
  const wide = width >= 760, left = 34, top = 20, count = slots + RUNNERS, side = wide ? 330 : 0;
  const room = width - left - side - (wide ? 24 : 0), margin = 62, path = room > 520 ? 120 : room > 400 ? 70 : 0;
  const chip = clamp(Math.floor((room - margin - path - (path ? 24 : 12)) / count), 20, 42), line = rows > 20 ? 17 : 24;
  const pathAt = left + chip * count + 12, marginAt = pathAt + (path ? path + 12 : 0), bottom = top + rows * line + 6;
  const focusHeight = 30 + GAP + marks * 17, lineAt = top + Math.max(0, spot) * line, over = !wide && spot >= 0 && rows > 12;
  const focus = { x: wide ? width - side : 0, y: bottom + 14, width: wide ? side : width, height: focusHeight, over };
  if (wide) focus.y = clamp(lineAt - focusHeight / 2, 0, Math.max(0, bottom - focusHeight));
  if (over) focus.y = lineAt > focusHeight + top ? lineAt - focusHeight - 4 : lineAt + line + 4;
  return { width, left, top, line, chip, count, rows, pathAt, path, marginAt, margin, focus, height: wide ? Math.max(bottom, focusHeight) : bottom + 14 + focusHeight };
}

/** Row and slot at a point, or null. @param {ReturnType<typeof place>} at */
export function chipAt(at, x, y) {
  const row = Math.floor((y - at.top) / at.line), slot = Math.floor((x - at.left) / at.chip);
  return row >= 0 && row < at.rows && slot >= 0 && slot < at.count ? { row, slot } : null;
}

/** A chip in words. @param {number} layer @param {Mark} mark @param {number} place from 0 */
export function chipWords(layer, mark, place, margin, slots) {
  const words = [`Layer ${layer}, expert ${mark.expert}`, mark.chosen ? `rank ${place + 1}, weight ${decimal(mark.weight)}` : `not chosen, number ${place + 1}`];
  if (Number.isFinite(mark.score)) words.push(`score ${decimal(mark.score, 4)}, bias ${mark.bias < 0 ? "" : "+"}${decimal(mark.bias, 4)}`);
  if (place === slots - 1 || place === slots) words.push(`margin ${decimal(margin, 4)}`);
  return words.join(" · ");
}

/** Rows of the table: every layer with its chips, margin, and numbers where known. */
export function lensRows(data, token, arrays) {
  return Array.from({ length: data.rows }, (_, row) => {
    const { marks, margin } = layerOf(data, token, row, arrays), chosen = marks.filter((one) => one.chosen), runner = marks.find((one) => !one.chosen);
    const list = (value) => chosen.map(value).join(", ");
    return [String(row + data.dense), list((one) => String(one.expert)), list((one) => decimal(one.weight)), list((one) => decimal(one.score, 3)), list((one) => decimal(one.bias, 3)), runner ? `${runner.expert} (${decimal(runner.score, 3)})` : "–", decimal(margin, 4)];
  });
}

// ---------------------------------------------------------------- drawing

/** Chips, path and margins of all layers. */
function drawLayers(pen, at, ink, { lines, data, colours, focused, expert }) {
  pen.textBaseline = "middle";
  pen.font = `11px ${ink.sans}`;
  putText(pen, ink.dim, "chosen, by score + bias", at.left, 9);
  pen.fillText("nearly", at.left + at.chip * data.slots + 3, 9, at.chip * RUNNERS);
  if (at.path) pen.fillText("path", at.pathAt, 9);
  pen.fillText("margin", at.marginAt, 9);
  lines.forEach(({ marks, margin, layer }, r) => {
    const y = at.top + r * at.line, middle = y + at.line / 2;
    if (layer === focused) fillBox(pen, ink.soft, [0, y, at.marginAt + at.margin, at.line], 0.5);
    putText(pen, layer === focused ? ink.fg : ink.dim, `L${layer}`, at.left - 6, middle, "right");
    marks.forEach((one, slot) => drawChip(pen, at.left + slot * at.chip, y, at, ink, one, colours, layer === focused && one.expert === expert, data.slots));
    fillBox(pen, ink.soft, [at.marginAt, y + at.line - 4, at.margin, 2]);
    fillBox(pen, ink.pin, [at.marginAt, y + at.line - 4, at.margin * tie(margin), 2]);
    putText(pen, ink.fg, margin < 0.00005 ? "< 0.0001" : decimal(margin, 4), at.marginAt, middle - 1);
  });
  if (at.path) drawPath(pen, at, ink, lines, data);
}

function drawChip(pen, x, y, at, ink, one, colours, focused, slots) {
  const high = at.line - 3, share = clamp((one.weight * slots) / 2.4, 0, 1);
  if (one.chosen) fillBox(pen, css(colours, share), [x, y + 1, at.chip - 2, high]); else strokeBox(pen, ink.line, [x + 0.5, y + 1.5, at.chip - 3, high - 1]);
  if (focused) strokeBox(pen, ink.pin, [x - 1, y, at.chip, high + 2], 2);
  putText(pen, one.chosen ? (share > 0.52 ? "#000" : "#fff") : ink.dim, String(one.expert), x + at.chip / 2 - 1, y + at.line / 2, "center", at.chip - 5);
}

function drawPath(pen, at, ink, layers, data) {
  const spot = (expert, row) => [at.pathAt + (expert + 0.5) / data.experts * at.path, at.top + (row + 0.5) * at.line];
  strokeBox(pen, ink.line, [at.pathAt - 2.5, at.top + 0.5, at.path + 5, at.rows * at.line - 1]);
  pen.strokeStyle = ink.accent; pen.lineWidth = 1.5;
  pen.beginPath();
  layers.forEach(({ marks }, row) => { if (marks.length) { const [x, y] = spot(marks[0].expert, row); if (row) pen.lineTo(x, y); else pen.moveTo(x, y); } });
  pen.stroke();
  layers.forEach(({ marks }, row) => marks.forEach((one, rank) => {
    if (!one.chosen) return;
    const [x, y] = spot(one.expert, row), size = rank ? 3 : 5;
    fillBox(pen, rank ? ink.dim : ink.accent, [x - size / 2, y - size / 2, size, size], rank ? 0.55 : 1);
  }));
}

/** Score, bias and weight of the layer in focus: why selection is not weight. */
function drawFocus(pen, at, ink, { layer, marks, margin, expert, slots }) {
  const { x, y, width } = at.focus, columns = [["score", 0.36], ["bias", 0.3], ["weight", 0.34]], start = x + 40, room = width - 46;
  const most = { score: 1, bias: Math.max(...marks.map((one) => Math.abs(one.bias || 0)), 1e-6), weight: Math.max(...marks.map((one) => one.weight || 0), 1e-6) };
  if (at.focus.over) {
    fillBox(pen, ink.bg, [x, y - 6, width, at.focus.height]);
    strokeBox(pen, ink.accent, [x + 0.5, y - 5.5, width - 1, at.focus.height - 1]);
  }
  pen.font = `600 11px ${ink.sans}`;
  putText(pen, ink.fg, `L${layer}`, start - 6, y + 9, "right");
  pen.font = `11px ${ink.sans}`;
  let left = start;
  for (const [name, share] of columns) {
    const wide = room * share - 10;
    putText(pen, ink.dim, { score: "score, sigmoid", bias: "+ bias: choice", weight: "mixing weight" }[name], left, y + 9, "left", wide);
    marks.forEach((one, i) => {
      const top = y + 20 + i * 17 + (i >= slots ? GAP : 0), value = one[name];
      if (name === "score") putText(pen, one.expert === expert ? ink.pin : one.chosen ? ink.fg : ink.dim, String(one.expert), start - 6, top + 8, "right");
      if (!Number.isFinite(value)) { putText(pen, ink.dim, name === "weight" && !one.chosen ? "not mixed in" : "–", left, top + 8, "left", wide); return; }
      const size = (wide - 2) * Math.abs(value) / most[name], middle = left + wide / 2;
      if (name === "bias") fillBox(pen, value < 0 ? ORANGE : BLUE, [value < 0 ? middle - size / 2 : middle, top + 2, Math.max(0.5, size / 2), 12]);
      else fillBox(pen, ink.soft, [left, top + 2, Math.max(0.5, size), 12]);
      putText(pen, ink.fg, name === "bias" ? signed(value, 4) : decimal(value, name === "score" ? 4 : 2), left + 3, top + 8);
    });
    left += room * share;
  }
  if (marks.length <= slots) return;
  const cut = y + 20 + slots * 17 + 9;
  fillBox(pen, ink.pin, [x, cut - 0.5, width - 96, 1]);
  putText(pen, ink.pin, `margin ${decimal(margin, 4)}`, x + width - 12, cut, "right");
}

// ---------------------------------------------------------------- the widget

function fill(view) {
  const { store, root, signal } = view;
  root.classList.add("k2-lens");
  let shown = null;
  const token = () => store.token(store.data.m);
  const edits = tray(store, signal);
  const panel = picturePanel(view, {
    name: "RouteLens",
    label: "Chosen experts of one token by layer. Arrow keys move, comma and point change the token, Enter pins, Escape clears.",
    tools: [traitChoice(view, "lens", "Layers", [["all", "all layers"], ["ties", "nearest ties first"]], () => panel.paint())],
    content, at: (x, y, at) => chipAt(at, x, y),
    hover: (spot) => { const mark = markAt(spot); if (mark) store.hover({ layer: mark.layer, expert: mark.expert }); else store.leave(); },
    click: (spot) => { const mark = markAt(spot); if (mark) store.pin({ layer: mark.layer, expert: mark.expert, playhead: token() }); },
    keys,
  });
  root.append(edits.node);

  function content() {
    const { data } = store;
    if (store.unrouted) return { why: store.unrouted };
    const i = token(), detail = store.detail("route", i), arrays = detail?.arrays.scores ? detail.arrays : null;
    const layers = Array.from({ length: data.rows }, (_, row) => layerOf(data, i, row, arrays));
    const order = Array.from(layers.keys());
    if (view.model.get("lens") === "ties") order.sort((a, b) => layers[a].margin - layers[b].margin);
    const focused = store.row() >= 0 ? store.row() : order.reduce((best, row) => (layers[row].margin < layers[best].margin ? row : best), order[0]);
    shown = { data, order, layers, token: i };
    const colours = ramp(store.get("palette"));
    const expert = store.row() >= 0 ? store.get("expert") : -1, marks = layers[focused].marks;
    const note = detail ? (arrays ? `Scores: ${detail.provenance}.` : `Scores: missing. ${detail.note}`) : SLOW;
    const near = layers.filter(({ margin }) => margin < 0.001).length;
    return {
      place: (width) => place(width, data.rows, data.slots, data.slots + RUNNERS, store.row() >= 0 ? order.indexOf(focused) : -1),
      paint: (pen, at, ink) => {
        const lines = order.map((row) => ({ ...layers[row], layer: row + data.dense }));
        drawLayers(pen, at, ink, { lines, data, colours, focused: focused + data.dense, expert });
        drawFocus(pen, at, ink, { layer: focused + data.dense, marks, margin: layers[focused].margin, expert, slots: data.slots });
      },
      table: () => ({ caption: `Routing of token ${i}, ${JSON.stringify(data.texts[i])}`, head: ["layer", "chosen", "weight", "score", "bias", "next (score)", "margin"], rows: lensRows(data, i, arrays) }),
      words: `Token ${i} ${JSON.stringify(data.texts[i])}. ${near ? `${near} of ${data.rows} layers decide by less than 0.001. ` : ""}${note}`,
    };
  }

  const markAt = ({ row, slot }) => {
    const real = shown?.order[row], mark = shown?.layers[real]?.marks[slot];
    return mark ? { ...mark, layer: real + shown.data.dense } : null;
  };

  function keys(key, event) {
    const { data, order, layers, token: i } = shown;
    if (key === "," || key === ".") { store.hover({ playhead: clamp(i + (key === "." ? 1 : -1), 0, data.m - 1) }); return true; }
    if (key === "Enter" && store.get("expert") >= 0) { store.pin({ layer: store.get("layer"), expert: store.get("expert"), playhead: i }); return true; }
    const line = Math.max(0, order.indexOf(store.row())), marks = layers[order[line]].marks;
    const slot = Math.max(0, marks.findIndex((one) => one.expert === store.get("expert")));
    const { down } = arrow(key);
    const row = down ? clamp(line + (store.row() < 0 ? 0 : down), 0, order.length - 1) : line;
    const column = down ? slot : stepOf(key, slot + (store.get("expert") < 0 && key === "ArrowRight" ? -1 : 0), marks.length - 1);
    if (column === null || event.altKey) return false;
    const now = layers[order[row]].marks, at = Math.min(column, now.length - 1), layer = order[row] + data.dense;
    store.hover({ playhead: i, layer, expert: now[at].expert });
    panel.say(chipWords(layer, now[at], at, layers[order[row]].margin, data.slots));
    return true;
  }
}

export default storeView(fill);
