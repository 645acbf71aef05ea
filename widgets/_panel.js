import { button, el, onKeys, onSize, painter, region, setText, table, toggle } from "./_kit.js";
import { onTheme } from "./_colour.js";
import { canvasPen, download, inkOf, pictureFile } from "./_pen.js";
import { statusLine } from "./_head.js";

/**
 * Shared by the widgets that are one picture: toolbar, canvas with keys and pointer, words below it,
 * table, picture files. Not here: what is drawn; that comes as `content`.
 */

/**
 * @typedef {{width: number, height: number}} Place where things lie, in CSS px; a widget adds its own
 * @typedef {{why: string, soon?: boolean} | {
 *   place: (width: number, ratio: number) => Place,
 *   paint: (pen: any, place: any, ink: any) => void,
 *   table: () => {caption: string, head: string[], rows: string[][]},
 *   words: string,
 * }} Content what is shown, or why nothing is; `soon`: it is being computed, and the picture before it stays till then, dimmed
 */

/**
 * Fills `root` with a picture and everything around it.
 * @param {{store: any, root: HTMLElement, signal: AbortSignal, fail: (error: any) => void, compact?: boolean}} view
 * @param {{name: string, label: string, tools: Node[], content: (now: number) => Content,
 *   at?: (x: number, y: number, place: any) => any, hover?: (spot: any) => void, click?: (spot: any, event: PointerEvent) => void,
 *   slim?: boolean, away?: () => void, drag?: (from: any, to: any) => void, keys?: (key: string, event: KeyboardEvent) => boolean}} parts `at` turns a point into a spot, or null
 */
export function picturePanel({ store, root, signal, fail, compact }, parts) {
  let asTable = false, place = null, shown = null, spoken = "", rows = "", drawn = false, wide = 0, tall = 0;
  const paint = painter(draw, signal, fail);
  const canvas = el("canvas", { "aria-hidden": "true" });
  const spot = el("div", { role: "gridcell", id: `k2-cell-${++cells}` });
  const grid = el("div.k2-grid", { role: "grid", tabindex: 0, "aria-label": parts.label }, el("div", { role: "row", class: "k2-hidden" }, spot), canvas);
  const empty = el("p.k2-empty", { hidden: true });
  const readout = el("p.k2-readout"), live = el("p.k2-hidden", { "aria-live": "polite" });
  const pane = tablePane(parts.name), foot = el("div.k2-foot", {}, readout);
  const { group, files } = takeAway((on) => { asTable = on; rows = ""; paint(); }, file, signal);
  const slim = compact && parts.slim; // the words stand in the toolbar's line
  if (slim) readout.classList.add("k2-slim");
  const tools = el("div.k2-tools", {}, ...parts.tools, slim ? readout : el("span.k2-gap"), group);
  if (!compact) root.append(statusLine(store, signal));
  root.append(tools, empty, grid, pane, foot, live);

  function draw(now) {
    if (!root.clientWidth) { parts.away?.(); return; } // hidden; its size will call again
    shown = parts.content(now);
    const why = "why" in shown ? shown.why : "", waits = "why" in shown && !!shown.soon && drawn, gone = !!why && !waits;
    drawn = !gone;
    empty.hidden = !gone; setText(empty, why);
    grid.hidden = asTable || (gone && !grid.matches(":focus")); canvas.hidden = gone; // who is in it stays in it
    pane.hidden = gone || !asTable; foot.hidden = gone;
    for (const node of [canvas, pane]) node.classList.toggle("k2-waits", waits);
    for (const node of files) node.disabled = !!why;
    if (why) { if (waits) tell(why); return; }
    tell(shown.words);
    if (asTable) { drawTable(shown.table()); return; }
    const ratio = devicePixelRatio || 1;
    place = shown.place(grid.clientWidth, ratio);
    shown.paint(canvasPen(canvas, place.width, place.height, ratio), place, inkOf(root));
  }

  /** The words, in a place that grows and never shrinks: nothing below may move under the pointer. */
  function tell(words) {
    if (root.clientWidth !== wide) { wide = root.clientWidth; tall = 0; readout.style.minHeight = ""; }
    else if (readout.textContent === words) return;
    setText(readout, words);
    if (!slim && readout.offsetHeight > tall) readout.style.minHeight = `${tall = readout.offsetHeight}px`;
  }

  function drawTable({ caption, head, rows: texts }) {
    const key = JSON.stringify([caption, texts]);
    if (key === rows) return;
    rows = key;
    pane.replaceChildren(table(caption, head, texts));
  }

  async function file(kind) {
    if (!place || "why" in shown) return;
    const ink = inkOf(root), size = shown.place(Math.max(640, grid.clientWidth || 0), 2);
    download(await pictureFile(kind, size, (pen) => shown.paint(pen, size, ink), ink.bg), `${parts.name.toLowerCase()}.${kind}`);
  }

  const pointed = (event) => {
    const box = canvas.getBoundingClientRect();
    return place && parts.at ? parts.at(event.clientX - box.left, event.clientY - box.top, place) : null;
  };
  let from = null;
  canvas.addEventListener("pointermove", (event) => {
    const to = pointed(event);
    if (from !== null && parts.drag) { if (to !== null) parts.drag(from, to); return; }
    if (to === null) store.leave(); else parts.hover?.(to);
    canvas.style.cursor = to === null ? "default" : "crosshair";
  }, { signal });
  canvas.addEventListener("pointerleave", () => { if (from === null) store.leave(); }, { signal });
  canvas.addEventListener("pointerdown", (event) => {
    from = pointed(event);
    if (from !== null && parts.drag) canvas.setPointerCapture(event.pointerId);
  }, { signal });
  canvas.addEventListener("pointerup", (event) => {
    const to = pointed(event), same = to !== null && JSON.stringify(to) === JSON.stringify(from);
    from = null;
    if (same) parts.click?.(to, event);
  }, { signal });
  canvas.addEventListener("pointercancel", () => { from = null; }, { signal });
  onKeys(grid, (key, event) => {
    if (key === "Escape") { store.clear(); return true; }
    return shown && !("why" in shown) ? parts.keys?.(key, event) ?? false : false;
  }, signal);

  store.listen(paint, signal);
  onTheme(paint, signal);
  for (const node of files) node.disabled = true; // until something is drawn
  onSize(root, paint, signal);
  paint();

  return {
    paint, tools, foot, grid,
    /** Says what is in focus to those who listen. @param {string} words */
    say(words) {
      if (words === spoken) return;
      spoken = words;
      spot.textContent = words; live.textContent = words;
      grid.setAttribute("aria-activedescendant", spot.id);
    },
  };
}

let cells = 0;

/** Where a widget's table stands. @param {string} name of the widget */
export function tablePane(name) {
  return region("div.k2-table-pane", `${name} as a table`);
}

/**
 * What is shown in other forms: as a table, as a file.
 * @param {(on: boolean) => void} turn @param {(kind: "png"|"svg") => void} file @param {AbortSignal} signal
 */
export function takeAway(turn, file, signal) {
  const files = ["png", "svg"].map((kind) => button(kind.toUpperCase(), () => file(/** @type {any} */ (kind)), signal, { title: `Save this picture as ${kind.toUpperCase()}` }));
  return { files, group: el("div.k2-group", {}, toggle("Table", turn, signal), ...files) };
}

/** Which way an arrow key points: one step aside or down, or none. @param {string} key */
export function arrow(key) { return { side: { ArrowRight: 1, ArrowLeft: -1 }[key], down: { ArrowDown: 1, ArrowUp: -1 }[key] }; }

/** Moves within a row of marks: what a key does to a position, or null. @param {string} key */
export function stepOf(key, at, last, wide = 10) {
  const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - wide, PageDown: at + wide, Home: 0, End: last };
  return key in steps ? Math.min(last, Math.max(0, steps[key])) : null;
}
