import { clamp, decimal, half, kindColour, percent } from "./_numbers.js";
import { ramp } from "./_colour.js";
import { choice, offer, storeView } from "./_kit.js";
import { arrow, picturePanel } from "./_panel.js";
import { fillBox, pixels, putText, strokeBox } from "./_pen.js";
import { HEAD_DEEDS, tray } from "./_tray.js";

/**
 * AttentionCache: what the heads of one layer read at one token, over the text itself and as a grid;
 * how much of it the rotated part decides; and what the latent cache costs beside one of keys and
 * values. Not here: how the weights come about (engine/replay.py, trace/attention.py).
 */

const MOST = 6; // positions named

// ---------------------------------------------------------------- data (pure)

/**
 * What a head reads, or the mean of all. Weights travel as float32 or raw float16.
 * @param {Record<string, any>} arrays @param {number} sources @param {number} head −1: mean of all
 * @returns {Float32Array} [source]
 */
export function reads(arrays, sources, head) {
  const heads = arrays.rope.length, values = new Float32Array(sources), at = (i) => (arrays.weights instanceof Uint16Array ? half(arrays.weights[i]) : arrays.weights[i]);
  if (head >= 0) for (let s = 0; s < sources; s++) values[s] = at(head * sources + s);
  else for (let h = 0; h < heads; h++) for (let s = 0; s < sources; s++) values[s] += at(h * sources + s) / heads;
  return values;
}

/** The positions read most, with their share. @param {Float32Array} values */
export function mostRead(values, count = MOST) {
  return Array.from(values, (share, i) => ({ i, share })).sort((a, b) => b.share - a.share).slice(0, count).filter((one) => one.share > 0);
}

/** How many positions it takes to have half of what is read. @param {Float32Array} values */
export function spread(values) {
  let sum = 0, count = 0;
  for (const share of Float32Array.from(values).sort().reverse()) { if (sum >= 0.5) break; sum += share; count++; }
  return count;
}

/**
 * Largest value of each column of a picture that has fewer columns than there are sources.
 * @param {Float32Array} values @param {number} columns
 */
export function binned(values, columns) {
  if (values.length <= columns) return values;
  const found = new Float32Array(columns);
  values.forEach((value, i) => { const c = Math.floor((i * columns) / values.length); found[c] = Math.max(found[c], value); });
  return found;
}

/** Where everything lies, in CSS px. @param {number} width @param {number} heads */
export function place(width, heads) {
  const left = 40, side = 66, top = 18, line = clamp(Math.floor(200 / Math.max(1, heads)), 5, 24), room = Math.max(60, width - left - side - 12);
  const gridBottom = top + heads * line;
  return { width, left, side, top, line, room, heads, gridBottom, textY: gridBottom + 5, normY: gridBottom + 20, normHeight: 28, meterY: gridBottom + 64, height: gridBottom + 64 + 48 };
}

/** Head and source at a point, or null. @param {ReturnType<typeof place>} at @param {number} sources */
export function headAt(at, x, y, sources) {
  const source = Math.floor(((x - at.left) / at.room) * sources), head = Math.floor((y - at.top) / at.line);
  if (source < 0 || source >= sources || y < at.top || y > at.normY + at.normHeight) return null;
  return { head: head < at.heads ? head : -1, source };
}

/** Cache sizes in words. @param {any} status */
export function meter(status) {
  const { latent_bytes: latent, multi_head_bytes: full } = status ?? {};
  if (!latent || !full) return null;
  const size = (bytes) => (bytes >= 1e6 ? `${decimal(bytes / 1e6, 1)} MB` : bytes >= 1e4 ? `${Math.round(bytes / 1e3)} kB` : `${bytes.toLocaleString("en-GB")} B`);
  return { latent, full, share: latent / full, words: [`latent cache: ${size(latent)} per token`, `keys and values of all heads: ${size(full)}, ${decimal(full / latent, 1)} × as much`] };
}

// ---------------------------------------------------------------- drawing

function draw(pen, at, ink, { data, arrays, sources, rows, names, values, head, hovered, colours, status, scratch }) {
  pen.font = `11px ${ink.sans}`;
  pen.textBaseline = "middle";
  putText(pen, ink.dim, "what each head reads", at.left, 9, "left", at.room);
  pen.fillText("rotated", at.left + at.room + 8, 9, at.side);
  const columns = Math.min(sources, Math.max(1, Math.round(at.room))), lines = rows.map((row) => binned(row, columns));
  const most = lines.map((line) => line.reduce((a, b) => Math.max(a, b), 1e-9));
  pen.drawImage(pixels(scratch, at.heads, columns, (r, c) => Math.sqrt(lines[r][c] / most[r]), colours), at.left, at.top, at.room, at.heads * at.line);
  const every = Math.max(1, Math.ceil(13 / at.line));
  for (let h = 0; h < at.heads; h++) {
    const y = at.top + h * at.line;
    if (h % every === 0 || h === head) putText(pen, h === head ? ink.fg : ink.dim, `H${names[h]}`, at.left - 5, y + at.line / 2, "right");
    fillBox(pen, ink.soft, [at.left + at.room + 8, y + 1, at.side - 8, at.line - 2]);
    fillBox(pen, ink.accent, [at.left + at.room + 8, y + 1, (at.side - 8) * arrays.rope[h], at.line - 2], 0.7);
    if (at.line >= 13) putText(pen, ink.fg, percent(arrays.rope[h]), at.left + at.room + 12, y + at.line / 2);
  }
  if (head >= 0 && head < at.heads) strokeBox(pen, ink.pin, [at.left - 1, at.top + head * at.line - 0.5, at.room + 2, at.line + 1], 2);
  drawSources(pen, at, ink, data, arrays, sources);
  if (hovered >= 0 && hovered < sources) {
    const x = at.left + ((hovered + 0.5) / sources) * at.room;
    fillBox(pen, ink.fg, [x - 0.5, at.top, Math.max(1, at.room / sources * 0.2), at.normY + at.normHeight - at.top], 0.6);
  }
  drawMeter(pen, at, ink, status);
}

/** The text's parts below the grid, and the length of each cached latent. */
function drawSources(pen, at, ink, data, arrays, sources) {
  const x = (i) => at.left + (i / sources) * at.room;
  for (const [kind, start, stop] of data.runs(0, sources)) fillBox(pen, kindColour(kind), [x(start), at.textY, Math.max(0.6, x(stop) - x(start) - 0.5), 8]);
  putText(pen, ink.dim, "text", at.left - 5, at.textY + 4, "right");
  pen.fillText("|c|", at.left - 5, at.normY + at.normHeight / 2);
  const norms = arrays.norm, most = norms.reduce((a, b) => Math.max(a, b), 1e-9), bars = binned(norms, Math.round(at.room)), wide = at.room / bars.length;
  bars.forEach((value, i) => fillBox(pen, ink.dim, [at.left + i * wide, at.normY + at.normHeight * (1 - value / most), Math.max(0.6, wide - (wide > 3 ? 1 : 0)), at.normHeight * (value / most)], 0.6));
  putText(pen, ink.dim, "length of latents", at.left + at.room + 8, at.normY + at.normHeight / 2, "left", at.side);
}

function drawMeter(pen, at, ink, status) {
  const sizes = meter(status);
  if (!sizes) { putText(pen, ink.dim, "Cache size: missing, this trace does not say how large its latents are.", at.left, at.meterY + 8, "left", at.width - at.left); return; }
  const room = at.width - at.left - 8;
  [[sizes.share, "#009e73", sizes.words[0]], [1, ink.soft, sizes.words[1]]].forEach(([share, colour, words], k) => {
    const y = at.meterY + k * 20;
    fillBox(pen, colour, [at.left, y, Math.max(2, room * share), 16]);
    putText(pen, ink.fg, words, k ? at.left + 6 : at.left + Math.max(2, room * share) + 6, y + 8, "left", k ? room - 8 : room * (1 - share) - 8);
  });
}

// ---------------------------------------------------------------- the widget

function fill(view) {
  const { store, root, signal } = view, scratch = document.createElement("canvas");
  root.classList.add("k2-attention");
  let shown = null, held = -1, hovered = -1, heat = null; // held: the head that was clicked
  const cool = () => { if (heat && store.heat === heat) store.setHeat(null); heat = null; }; // another view's shading is not this one's to end
  const layers = choice("Layer", [], "", (value) => store.select({ layer: Number(value) }), signal), list = layers.control;
  const panel = picturePanel(view, {
    name: "AttentionCache", label: "Heads by sources. Up and down choose a head, left and right a source, Page keys a layer, Enter pins, Escape clears.",
    tools: [layers], content, away: cool,
    at: (x, y, at) => (shown ? headAt(at, x, y, shown.sources) : null),
    hover: ({ head, source }) => { hovered = source; store.select({ head: head < 0 ? held : shown.names[head] }); panel.paint(); },
    click: ({ head }) => { if (head >= 0) { held = held === shown.names[head] ? -1 : shown.names[head]; store.select({ head: held }); } },
    keys,
  });
  const edits = tray(store, signal, { deeds: HEAD_DEEDS, words: () => (store.get("head") >= 0 ? `L${layerNow()} head ${store.get("head")}` : ""), edit: (deed, scope) => ({ do: deed, layer: layerNow(), heads: [store.get("head")], ...scope }) });
  root.append(edits.node);
  panel.grid.addEventListener("pointerleave", () => { hovered = -1; store.select({ head: held }); panel.paint(); }, { signal });
  signal.addEventListener("abort", cool);

  /** The query is what is pinned, else where the pointer is, else the last token. */
  const query = () => { const { n } = store.data, pin = store.pinned()[0]; return pin >= 0 && pin < n ? pin : store.token(n); };
  const layerCount = () => store.get("about")?.layers ?? 0;
  const layerNow = () => { const count = layerCount(), layer = store.get("layer"); return layer >= 0 && layer < count ? layer : count - 1; };

  function content() {
    const { data } = store, count = layerCount(), i = query(), layer = layerNow();
    if (list.options.length !== count) offer(list, Array.from({ length: count }, (_, l) => [String(l), `layer ${l}`]), String(layer));
    if (list.value !== String(layer)) list.value = String(layer);
    shown = null;
    const none = (why, soon = false) => { cool(); return { why, soon }; };
    if (!data.n || !count) return none("No tokens yet.");
    const detail = store.detail("attention", i, layer);
    if (!detail) return none(`Attention of layer ${layer} at token ${i} is being computed …`, true);
    if (!detail.arrays.weights) return none(`Attention of layer ${layer}: missing. ${detail.note}`);
    const { arrays } = detail, sources = arrays.norm.length, heads = arrays.rope.length, names = arrays.heads ? Array.from(arrays.heads) : Array.from({ length: heads }, (_, h) => h);
    const head = names.indexOf(store.get("head")), values = reads(arrays, sources, head), rows = Array.from({ length: heads }, (_, h) => reads(arrays, sources, h));
    const most = mostRead(values), peak = Math.max(most[0]?.share ?? 0, 1e-9), whose = head >= 0 ? `head ${names[head]}` : "the mean of the heads";
    shown = { data, sources, heads, names, values, layer, token: i, head };
    const warm = { key: `${i}|${layer}|${head}|${store.epoch}`, values: values.map((share) => share / peak), label: `read by ${whose} of layer ${layer}` };
    store.setHeat(warm);
    if (store.heat === warm) heat = warm;
    const colours = ramp(store.get("palette")), { status } = store, named = (found, words) => found.map(({ i: s, share }) => `${JSON.stringify(data.texts[s])} ${words(s, percent(share))}`).join(", ");
    return {
      place: (width) => place(width, heads),
      paint: (pen, at, ink) => draw(pen, at, ink, { data, arrays, sources, rows, names, values, head, hovered, colours, status, scratch }),
      table: () => ({ caption: `Layer ${layer} at token ${i}, ${JSON.stringify(data.texts[i])}: what each head reads`, head: ["head", "reads most", "positions for half", "rotated part"], rows: rows.map((row, h) => [String(names[h]), named(mostRead(row, 4), (s, share) => `${s} (${share})`), String(spread(row)), percent(arrays.rope[h])]) }),
      words: hovered >= 0 && hovered < sources ? `Source ${hovered} ${JSON.stringify(data.texts[hovered])}: ${percent(values[hovered])} of ${whose}; latent of length ${decimal(arrays.norm[hovered], 1)}`
        : `Token ${i} ${JSON.stringify(data.texts[i])}, layer ${layer}: ${whose} reads ${named(most.slice(0, 4), (_, share) => share)}; half of it from ${spread(values)} of ${sources} positions. Weights: ${detail.provenance}.`,
    };
  }

  function keys(key) {
    if (!shown) return false;
    const { heads, names, sources, head, token } = shown, count = layerCount(), { side, down } = arrow(key);
    if (key === "Enter") { store.pin({ playhead: token }); return true; }
    if (key === "PageUp" || key === "PageDown") { store.select({ layer: clamp(layerNow() + (key === "PageUp" ? 1 : -1), 0, count - 1) }); panel.say(`Layer ${layerNow()}`); return true; }
    if (down) { const next = clamp(head + down, -1, heads - 1); held = next < 0 ? -1 : names[next]; store.select({ head: held }); panel.say(held < 0 ? "mean of the heads" : `head ${held}`); return true; }
    if (!side) return false;
    hovered = clamp((hovered < 0 ? sources : hovered) + side, 0, sources - 1);
    panel.paint();
    panel.say(`Source ${hovered}, ${percent(shown.values[hovered])}`);
    return true;
  }
}

export default storeView(fill);
