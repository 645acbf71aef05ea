import { clamp, unpack } from "./_numbers.js";
import { debounce, register, registry } from "./_kit.js";
import { TraceData } from "./_columns.js";

/**
 * The hidden store: the run's data in this page, and what is selected in it. It draws nothing.
 * Views find it by id in the page's registry; the kernel fills it with binary frames.
 */

/** Traits that make up the shared selection, as in k2lab/widgets/store.py. */
export const SELECTION = ["run", "range", "layer", "expert", "head", "segment", "compare", "playhead", "palette", "pin", "edits"];

const KEPT = 48; // details
const AGAIN = 3000; // ms after which what was missing is asked for once more: somebody else may have had the engine

/** Data and selection of one run, shared by the views in this page. */
export class Store {
  /** @param {any} model */
  constructor(model) {
    this.model = model;
    this.epoch = model.get("epoch") ?? 0;
    this.data = new TraceData(model.get("about") ?? {});
    this.notice = "";
    /** @type {Set<() => void>} */ this.listeners = new Set();
    this.save = debounce(() => model.save_changes());
    this.asked = 0;
    this.telling = false;
    /** @type {Map<string, any>} */ this.details = new Map();
    /** @type {any} */ this.wanted = null;
    this.fetch = debounce(() => this.sendWanted(), 90, 400);
    /** @type {any} */ this.outcome = null; // of the last action
    /** @type {[any, any[]][] | null} */ this.frozen = null; // frames that wait while the view is held
    /** @type {{key: string, values: Float32Array, label: string} | null} */ this.heat = null; // over the text
  }

  get(name) { return this.model.get(name); }

  /** State, origin and abilities of the run. */
  get status() { return this.get("status") ?? {}; }

  /** Whether the run goes on, if only after a pause. */
  get busy() { return ["running", "paused"].includes(this.status.state); }

  /** Whether somebody behind this page can do that. @param {string} action */
  can(action) { return (this.status.can ?? []).includes(action); }

  /** Why there are no routes to be shown, or "". */
  get unrouted() {
    if (!this.data.rows || !this.data.experts) return "This model has no layers with routed experts.";
    if (this.data.m) return "";
    return this.status.state === "running" ? "The first routing comes with the first tokens." : "No routing was captured in this run (capture level “off”).";
  }

  /** Calls `act` after every change, until the signal. @param {() => void} act @param {AbortSignal} signal */
  listen(act, signal) {
    this.listeners.add(act);
    signal.addEventListener("abort", () => this.listeners.delete(act));
  }

  /** Calls `act` now and after every change. @param {() => void} act @param {AbortSignal} signal */
  follow(act, signal) { this.listen(act, signal); act(); }

  tell() { for (const act of [...this.listeners]) act(); }

  /** Tells once, however many traits change together. */
  tellSoon() {
    if (this.telling) return;
    this.telling = true;
    queueMicrotask(() => { this.telling = false; this.tell(); });
  }

  send(message) {
    this.notice = "";
    try { this.model.send(message); } catch (error) { this.notice = `The kernel cannot be reached: ${error}`; }
    this.tell();
  }

  /**
   * Arrays about a token that come on demand: what is known, or null while they are asked for.
   * @param {"route"|"attention"} what @param {number} token @param {number} [layer]
   * @returns {{arrays: Record<string, any>, provenance: string, note: string} | null}
   */
  detail(what, token, layer = -1) {
    const key = `${what}:${token}:${layer}`, known = this.details.get(key);
    if (known && !(known.provenance === "missing" && (known.state !== this.status.state || Date.now() - known.at > AGAIN))) return known;
    if (this.wanted?.key !== key) { this.wanted = { type: "detail", key, what, token, layer }; this.fetch(); }
    return known ?? null;
  }

  sendWanted() {
    if (!this.wanted) return;
    try { this.model.send(this.wanted); } catch { this.takeDetail({ key: this.wanted.key, arrays: "", provenance: "missing", note: "The kernel cannot be reached." }, []); }
  }

  takeDetail(message, buffers) {
    if (message.epoch !== undefined && message.epoch !== this.epoch) return;
    const { key, provenance, note } = message;
    let arrays = {};
    try { arrays = unpack(message.arrays ?? "", buffers); } catch (error) { this.notice = String(error); }
    this.details.delete(key);
    this.details.set(key, { arrays, provenance, note: note ?? "", state: this.status.state, at: Date.now() });
    if (this.details.size > KEPT) this.details.delete(this.details.keys().next().value);
    if (this.wanted?.key === key) this.wanted = null;
  }

  /** Colours the text by values per token (attention), or no longer. @param {any} heat */
  setHeat(heat) {
    if ((heat?.key ?? "") === (this.heat?.key ?? "")) return;
    this.heat = heat;
    this.tell();
  }

  /** Changes the selection for all views at once, and for Python a moment later. */
  select(parts) {
    let changed = false;
    for (const [name, value] of Object.entries(parts)) {
      if (JSON.stringify(this.model.get(name)) === JSON.stringify(value)) continue;
      this.model.set(name, value);
      changed = true;
    }
    if (changed) this.save();
  }

  /** Shows a token, or a layer's expert, as long as the pointer is there. */
  hover(parts) { this.select(parts); }

  /** Back to what is pinned. */
  leave() {
    const [playhead, layer, expert] = this.pinned();
    this.select({ playhead, layer, expert });
  }

  /** Keeps a token or a layer's expert; pinning the same again lets it go. */
  pin(parts) {
    const [playhead, layer, expert] = this.pinned();
    const now = { playhead, layer, expert }, same = Object.entries(parts).every(([name, value]) => now[name] === value);
    for (const [name, value] of Object.entries(parts)) now[name] = same ? -1 : value;
    this.select({ ...now, pin: [now.playhead, now.layer, now.expert] });
  }

  /** Nothing pinned, no range. */
  clear() { this.select({ playhead: -1, layer: -1, expert: -1, pin: [-1, -1, -1], range: [], segment: "" }); }

  pinned() {
    const pin = this.model.get("pin");
    return Array.isArray(pin) && pin.length === 3 ? pin : [-1, -1, -1];
  }

  /** The token in focus among the first `count`, else the last of them. @param {number} count */
  token(count) {
    const head = this.get("playhead");
    return head >= 0 && head < count ? head : count - 1;
  }

  /** The selected tokens [a, b), or null. */
  range() {
    const range = this.model.get("range") ?? [];
    return range.length === 2 && range[0] < range[1] ? range.map((i) => clamp(i, 0, this.data.n)) : null;
  }

  /** Selects from token `at` to token `to`; a range that ends at `at` goes on. */
  reach(at, to) {
    const range = this.range(), from = range && range[1] - 1 === at ? range[0] : at;
    this.select({ range: [Math.min(from, to), Math.max(from, to) + 1] });
  }

  /** The selected expert's row in the routing arrays, or −1. */
  row() {
    const row = (this.model.get("layer") ?? -1) - this.data.dense;
    return row >= 0 && row < this.data.rows ? row : -1;
  }

  /** Begins anew when the kernel shows another run. */
  renew() {
    const epoch = this.model.get("epoch") ?? 0;
    if (epoch <= this.epoch) return;
    this.begin(epoch, this.model.get("about") ?? {});
  }

  begin(epoch, about) {
    this.epoch = epoch;
    this.data = new TraceData(about);
    this.details.clear();
    this.wanted = this.heat = this.outcome = null;
  }

  receive(message, buffers) {
    if (message?.type === "error") this.notice = `${message.found} Expected: ${message.expected}`;
    if (message?.type === "frame" && this.frozen) { this.frozen.push([message, buffers]); return; }
    if (message?.type === "frame") this.takeFrame(message, buffers);
    if (message?.type === "detail") this.takeDetail(message, buffers ?? []);
    if (message?.type === "outcome") this.outcome = message;
    this.tell();
  }

  /** Holds what is shown, or lets in what came meanwhile. @param {boolean} on */
  freeze(on) {
    const waiting = this.frozen ?? [];
    this.frozen = on ? waiting : null;
    if (!on) for (const [frame, buffers] of waiting) this.takeFrame(frame, buffers);
    this.tell();
  }

  takeFrame(frame, buffers) {
    if (frame.epoch < this.epoch) return;
    if (frame.epoch > this.epoch) this.begin(frame.epoch, frame.about ?? this.get("about")); // another run
    let whole = false;
    try { whole = this.data.accept(frame, buffers ?? []); } catch (error) { this.notice = String(error); }
    if (!whole) this.resync();
  }

  /** Asks for all beyond what is known; not more often than twice a second. */
  resync() {
    if (Date.now() - this.asked < 500) return;
    this.asked = Date.now();
    try {
      this.model.send({ type: "resync", epoch: this.epoch, from: this.data.n, routed: this.data.m, moved: this.data.moves.length });
    } catch { /* a saved page without kernel has nothing to send */ }
  }
}

/**
 * JupyterLab may make two models of one widget (reload); both then feed the store that views hold.
 * @param {{model: any, signal?: AbortSignal}} host
 */
function initialize({ model, signal }) {
  const id = model.get("store_id"), { stores } = registry(), store = stores.get(id) ?? new Store(model);
  store.model = model;
  model.on("msg:custom", (message, buffers) => store.receive(message, buffers));
  for (const name of [...SELECTION, "status", "runs", "code"]) model.on(`change:${name}`, () => store.tellSoon());
  model.on("change:epoch", () => { store.renew(); store.tell(); });
  register(id, store);
  signal?.addEventListener("abort", () => { if (store.model === model) stores.delete(id); });
  store.asked = 0;
  store.resync();
}

export default { initialize };
