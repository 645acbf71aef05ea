import { clamp, decimal, kindColour, KINDS, percent, signed } from "./_numbers.js";
import { button, choice, copyText, el, latest, offer, onTrait, region, registry, setText, storeView } from "./_kit.js";
import { BLUE, ORANGE } from "./_colour.js";
import { arrow, picturePanel } from "./_panel.js";
import { fillBox, putText } from "./_pen.js";
import { editWords, outcomeWords } from "./_tray.js";

/**
 * CompareBranch: the tree of runs, and two of them side by side: where they part, how far their
 * routing agrees in each layer, how their entropies differ. Not here: how a branch is made
 * (k2lab/run.py). Runs come as stores of this page; tokens are aligned by their index.
 */

const WINDOW = 160; // tokens shown of each run
const BEFORE = 12; // of them before the runs part

// ---------------------------------------------------------------- data (pure)

/** First index at which the tokens differ; the shorter length if one begins like the other. */
export function parting(a, b) {
  const most = Math.min(a.n, b.n);
  for (let i = 0; i < most; i++) if (a.column.ids[i] !== b.column.ids[i]) return i;
  return most;
}

/**
 * Mean Jaccard index of the chosen experts over tokens from … to − 1 of both, by layer; NaN: none.
 * @returns {Float32Array} [row]
 */
export function agreement(a, b, from, to) {
  const stop = Math.min(to, a.m, b.m), { rows, slots } = a, sums = new Float32Array(rows);
  if (stop <= from || b.rows !== rows || b.slots !== slots) return sums.fill(NaN);
  const left = a.column.experts, right = b.column.experts;
  for (let t = from; t < stop; t++) for (let row = 0; row < rows; row++) {
    const at = (t * rows + row) * slots;
    let both = 0;
    for (let s = 0; s < slots; s++) for (let k = 0; k < slots; k++) if (left[at + s] === right[at + k]) { both++; break; }
    sums[row] += both / (2 * slots - both);
  }
  return sums.map((sum) => sum / (stop - from));
}

/** Entropy of b − a at each index from `from`, NaN where one was given. @returns {Float32Array} */
export function entropyDifference(a, b, from) {
  const stop = Math.max(from, Math.min(a.n, b.n));
  return Float32Array.from({ length: stop - from }, (_, k) => b.column.entropy[from + k] - a.column.entropy[from + k]);
}

/** Mean of the numbers among the values. @param {Float32Array} values */
export function mean(values) {
  let sum = 0, count = 0;
  for (const value of values) if (!Number.isNaN(value)) { sum += value; count++; }
  return count ? sum / count : NaN;
}

/**
 * The runs of a tree, parents first, each with its depth.
 * @param {{id: string, name: string, parent: string}[]} runs
 */
export function branches(runs) {
  const known = new Set(runs.map((run) => run.id)), found = [];
  const visit = (run, depth) => { if (found.length > 500) return; found.push({ run, depth }); for (const child of runs) if (child.parent === run.id && child !== run) visit(child, depth + 1); };
  for (const run of runs) if (!known.has(run.parent)) visit(run, 0);
  return found;
}

/** What made a run differ from its parent, in words. */
export function branchWords(run) {
  const parts = [];
  if (run.at >= 0) parts.push(`from token ${run.at}${run.given ? ` with ${JSON.stringify(run.given)}` : ""}`);
  for (const edit of run.edits ?? []) parts.push(editWords(edit));
  return parts.join(" · ") || "the question";
}

/** Where everything lies, in CSS px. @param {number} width @param {number} rows */
export function place(width, rows) {
  const left = 34, top = 18, line = clamp(Math.floor(200 / Math.max(1, rows)), 4, 20), height = Math.max(rows * line, 90), bars = Math.max(90, Math.min(260, width * 0.32));
  return { width, left, top, line, rows, bars, plotX: left + bars + 74, plotWidth: Math.max(60, width - left - bars - 82), plotHeight: height, height: top + height + 20 };
}

/** Layer or token at a point, or null. @param {ReturnType<typeof place>} at */
export function spotAt(at, x, y, count) {
  if (y < at.top || y >= at.top + at.plotHeight) return null;
  if (x >= at.plotX && x < at.plotX + at.plotWidth && count) return { offset: Math.min(count - 1, Math.floor(((x - at.plotX) / at.plotWidth) * count)) };
  const row = Math.floor((y - at.top) / at.line);
  return x >= at.left && x < at.left + at.bars && row < at.rows ? { row } : null;
}

// ---------------------------------------------------------------- drawing

function draw(pen, at, ink, { after, dense, difference, part, row, head }) {
  pen.font = `11px ${ink.sans}`;
  pen.textBaseline = "middle";
  putText(pen, ink.dim, "same experts (Jaccard)", at.left, 8, "left", at.bars + 60);
  pen.fillText("entropy, right − left (nats)", at.plotX, 8, at.plotWidth);
  const every = Math.max(1, Math.ceil(13 / at.line));
  for (let r = 0; r < at.rows; r++) {
    const y = at.top + r * at.line;
    fillBox(pen, ink.soft, [at.left, y, at.bars, at.line - 1], 0.4);
    if (!Number.isNaN(after[r])) fillBox(pen, r === row ? ink.pin : ink.accent, [at.left, y, at.bars * after[r], at.line - 1]);
    if (r % every) continue;
    putText(pen, ink.dim, `L${r + dense}`, at.left - 5, y + at.line / 2, "right");
    putText(pen, ink.dim, decimal(after[r]), at.left + at.bars + 5, y + at.line / 2);
  }
  const middle = at.top + at.plotHeight / 2, most = difference.reduce((best, value) => (Number.isNaN(value) ? best : Math.max(best, Math.abs(value))), 0.1);
  fillBox(pen, ink.line, [at.plotX, middle, at.plotWidth, 1]);
  const wide = at.plotWidth / Math.max(1, difference.length);
  difference.forEach((value, k) => {
    if (Number.isNaN(value)) return;
    const size = (Math.abs(value) / most) * (at.plotHeight / 2 - 3);
    fillBox(pen, value > 0 ? ORANGE : BLUE, [at.plotX + k * wide, value > 0 ? middle - size : middle, Math.max(0.7, wide - (wide > 3 ? 1 : 0)), Math.max(0.7, size)]);
  });
  if (head >= part && head < part + difference.length) fillBox(pen, ink.fg, [at.plotX + (head - part + 0.5) * wide - 0.5, at.top, 1.5, at.plotHeight], 0.5);
  const say = (words, x, y, align) => putText(pen, ink.dim, words, x, y, align);
  say(signed(most, 1), at.plotX - 30, at.top + 6);
  say(signed(-most, 1), at.plotX - 30, at.top + at.plotHeight - 6);
  say(`token ${part}`, at.plotX, at.top + at.plotHeight + 9);
  say(`${part + difference.length - 1}`, at.plotX + at.plotWidth, at.top + at.plotHeight + 9, "right");
}

// ---------------------------------------------------------------- the widget

function fill(view) {
  const { model, store, root, signal } = view;
  root.classList.add("k2-compare");
  const SIDES = ["run", "compare"]; // the traits of the selection that say which runs
  let shown = null, listening = new Set(), known = { key: "" };
  const compared = latest();
  const chosen = () => SIDES.map((name) => store.get(name) || store.get("store_id"));
  const picks = ["Left", "Right"].map((label, side) => choice(label, [], "", (value) => store.select({ [SIDES[side]]: value }), signal));
  const lists = picks.map((pick) => pick.control);
  const tree = el("ul.k2-tree", { "aria-label": "Runs" }), panes = el("div.k2-panes", {}, region("div.k2-pane", "Text on the left"), region("div.k2-pane", "Text on the right"));
  const copy = button("Copy right as code", () => copyText(storeOf(chosen()[1])?.get("code") ?? "", copy), signal);
  const said = el("p.k2-said", { role: "status" });
  const panel = picturePanel(view, {
    name: "CompareBranch", label: "Agreement by layer and difference by token. Up and down choose a layer, left and right a token, Enter pins, Escape clears.",
    tools: [...picks, copy], content,
    at: (x, y, at) => (shown ? spotAt(at, x, y, shown.difference.length) : null),
    hover: (spot) => store.hover("row" in spot ? { layer: spot.row + shown.a.dense } : { playhead: shown.part + spot.offset }),
    click: (spot) => store.pin("row" in spot ? { layer: spot.row + shown.a.dense } : { playhead: shown.part + spot.offset }),
    keys,
  });
  panel.tools.after(tree, said, panes);

  const storeOf = (id) => (id === store.get("store_id") ? store : registry().stores.get(id));
  const runsNow = () => { const runs = store.get("runs") ?? []; return runs.length ? runs : [{ id: store.get("store_id"), name: "run", parent: "", at: -1, edits: [] }]; };

  function content() {
    const runs = runsNow(), order = branches(runs), last = order[order.length - 1]?.run.id;
    const key = JSON.stringify(runs);
    if (known.key !== key) {
      const fresh = known.ids && runs.map((run) => run.id).find((id) => !known.ids.includes(id)); // at first all are: what is selected stays
      known = { key, ids: runs.map((run) => run.id) };
      if (!known.ids.includes(store.get("run"))) store.select({ run: store.get("store_id") });
      if (fresh || !known.ids.includes(store.get("compare"))) store.select({ compare: fresh ?? last });
      writeTree(order);
    }
    const sides = chosen();
    lists.forEach((list, side) => { if (list.value !== sides[side]) list.value = sides[side]; });
    for (const id of sides) { // what the other run brings is drawn as it comes
      const other = storeOf(id);
      if (other && other !== store && !listening.has(id)) { listening.add(id); other.listen(panel.paint, signal); }
    }
    setText(said, store.outcome?.action === "branch" ? outcomeWords(store.outcome) : "");
    const [left, right] = sides.map(storeOf);
    shown = null;
    copy.disabled = !right?.get("code");
    for (const node of [...picks, copy]) node.hidden = runs.length < 2;
    panes.hidden = sides[0] === sides[1] || !left || !right;
    if (runs.length < 2) return { why: store.can("branch") ? "One run so far. Point at a token in the text and choose one of its alternatives: the run branches there, and both stand here side by side." : "There is one run here, and nothing to compare it with. In a live lab, `run.branch(at, …)` makes another." };
    if (!left || !right) return { why: "The data of the other run is not in this page. Run its cell again to see it." };
    if (sides[0] === sides[1]) return { why: "Choose two different runs." };
    const [a, b] = [left.data, right.data], shared = parting(a, b), stamp = [sides, ...[left, right].map(({ epoch, data }) => [epoch, data.n, data.m])].join("|");
    const part = shared < Math.min(a.n, b.n) ? shared : 0; // the same tokens: edits change routing alone
    const { after, difference } = compared(stamp, () => ({ after: agreement(a, b, part, Infinity), difference: entropyDifference(a, b, part) }));
    shown = { a, b, part, after, difference };
    writePanes(left, right, shared);
    const row = store.row(), head = store.get("playhead"), more = mean(difference);
    return {
      place: (width) => place(width, a.rows),
      paint: (pen, at, ink) => draw(pen, at, ink, { after, dense: a.dense, difference, part, row, head }),
      table: () => ({ caption: `Agreement of routing from token ${part} on, mean of ${Math.max(0, Math.min(a.m, b.m) - part)} tokens`, head: ["layer", "Jaccard index"], rows: Array.from(after, (value, r) => [String(r + a.dense), decimal(value, 3)]) }),
      words: `${shared} tokens shared, then ${a.n - shared} and ${b.n - shared}. ${part ? "After parting" : "From the beginning"}: same experts ${percent(mean(after))}, entropy ${Number.isNaN(more) ? "–" : signed(more)} nats on the right.`,
    };
  }

  function writeTree(order) {
    for (const list of lists) offer(list, order.map(({ run, depth }) => [run.id, `${"  ".repeat(depth)}${run.name}`]), "");
    tree.replaceChildren(...order.map(({ run, depth }) => el("li", { style: `margin-left:${Math.min(8, depth) * 16}px` },
      button(run.name, () => store.select({ compare: run.id }), signal, { class: "k2-button k2-small", title: "Show on the right" }), el("span", { text: ` ${branchWords(run)}` }))));
    tree.hidden = order.length < 2;
  }

  let written = "";
  function writePanes(left, right, part) {
    const from = Math.max(0, part - BEFORE), key = `${chosen()}|${part}|${[left, right].map((one) => Math.min(one.data.n, from + WINDOW))}`;
    if (key !== written) {
      written = key;
      [left, right].forEach((one, side) => fillPane(panes.children[side], one.data, [from, part], runsNow().find((run) => run.id === chosen()[side])?.name ?? ""));
    }
    const head = store.get("playhead");
    for (const node of panes.querySelectorAll("[data-i]")) node.classList.toggle("k2-head-on", Number(node.dataset.i) === head);
  }

  function fillPane(node, data, [from, part], name) {
    const stop = Math.min(data.n, from + WINDOW), text = el("div.k2-pane-text");
    if (from) text.append(el("span.k2-omitted", { text: `… ${from} shared tokens … ` }));
    for (let i = from; i < stop; i++) {
      if (KINDS[data.column.kinds[i]] === "marker" && i !== part) { // they would hide the words
        if (text.lastChild?.nodeName === "SPAN" && i > from) text.append(el("br"));
        continue;
      }
      const token = el("span", { class: `k2-token${i < part ? " k2-shared" : ""}${i === part ? " k2-parts" : ""}`, "data-i": i, text: data.texts[i] });
      token.style.setProperty("--kind", kindColour(data.column.kinds[i]));
      text.append(token);
    }
    if (stop < data.n) text.append(el("span.k2-omitted", { text: ` … ${data.n - stop} more tokens` }));
    node.setAttribute("aria-label", `Text of ${name}`);
    node.replaceChildren(el("div.k2-pane-name", { text: name }), text); // in the same node: it stays scrolled, and in focus
  }
  panes.addEventListener("pointerover", (event) => { const node = event.target instanceof Element ? event.target.closest("[data-i]") : null; if (node) store.hover({ playhead: Number(node.dataset.i) }); }, { signal });
  panes.addEventListener("pointerleave", () => store.leave(), { signal });

  function keys(key) {
    if (!shown) return false;
    const { a, part, difference, after } = shown, { side, down } = arrow(key);
    if (key === "Enter") { store.pin({ playhead: store.get("playhead"), layer: store.get("layer") }); return true; }
    if (down) {
      const row = clamp(store.row() + down, 0, a.rows - 1);
      store.hover({ layer: row + a.dense });
      panel.say(`Layer ${row + a.dense}: Jaccard ${decimal(after[row], 3)}`);
      return true;
    }
    if (!side || !difference.length) return false;
    const head = store.get("playhead"), i = clamp(head < part ? part : head + side, part, part + difference.length - 1);
    store.hover({ playhead: i });
    panel.say(`Token ${i}: ${JSON.stringify(shown.a.texts[i])} and ${JSON.stringify(shown.b.texts[i])}, entropy difference ${decimal(difference[i - part])}`);
    return true;
  }
  onTrait(model, "runs", panel.paint, signal);
}

export default storeView(fill);
