import { clamp, debounce, half, KINDS, register, registry, unpack } from "./_kit.js";

/**
 * The hidden store: the run's data in this page, and what is selected in it. It draws nothing.
 * Views find it by id in the page's registry; the kernel fills it with binary frames.
 */

const THINKING = KINDS.indexOf("thinking"), ANSWER = KINDS.indexOf("answer");

/** Traits that make up the shared selection, as in k2lab/widgets/store.py. */
export const SELECTION = ["run", "range", "layer", "expert", "head", "segment", "compare", "playhead", "palette", "pin"];

/** The run's columns, growing. `n` tokens are known, `m` of them with routing. */
export class TraceData {
  /** @param {{layers?: number, dense_layers?: number, experts?: number, slots?: number}} about */
  constructor(about) {
    this.rows = (about.layers ?? 0) - (about.dense_layers ?? 0);
    this.dense = about.dense_layers ?? 0;
    this.experts = about.experts ?? 0;
    this.slots = about.slots ?? 0;
    this.n = 0;
    this.m = 0;
    /** @type {string[]} */ this.texts = [];
    /** @type {string[]} */ this.topTexts = [];
    /** @type {any[]} */ this.calls = [];
    this.column = {
      ids: new Uint32Array(256), kinds: new Uint8Array(256), entropy: new Float32Array(256),
      logprob: new Float32Array(256), seconds: new Float32Array(256), topEnd: new Uint32Array(256),
      topP: new Float32Array(256), topIds: new Uint32Array(256),
      experts: new Uint16Array(0), weights: new Uint8Array(0), margin: new Uint16Array(0),
    };
    const cells = this.rows * this.experts;
    this.load = { all: new Uint32Array(cells), thinking: new Uint32Array(cells), answer: new Uint32Array(cells) };
    this.counted = { all: 0, thinking: 0, answer: 0 };
  }

  /**
   * Takes what a frame has beyond what is known.
   * @param {any} frame its header @param {(DataView|ArrayBuffer)[]} buffers
   * @returns {boolean} false: something between is missing, ask for it
   */
  accept(frame, buffers) {
    if (frame.start > this.n || frame.routed > this.m) return false;
    const arrays = unpack(frame.arrays, buffers);
    this.takeTokens(frame, arrays);
    this.takeRouting(frame.routed, arrays);
    for (const call of frame.calls ?? []) this.calls[call.place] = call;
    return true;
  }

  takeTokens(frame, arrays) {
    const skip = this.n - frame.start, fresh = arrays.ids.length - skip;
    if (fresh <= 0) return;
    for (const name of ["ids", "kinds", "entropy", "logprob", "seconds"]) this.put(name, this.n, arrays[name].subarray(skip));
    let top = 0;
    for (let i = 0; i < skip; i++) top += arrays.top_count[i];
    const known = this.topTexts.length;
    this.put("topIds", known, arrays.top_ids.subarray(top));
    this.put("topP", known, Float32Array.from(arrays.top_p.subarray(top), half));
    for (const text of frame.tops.slice(top)) this.topTexts.push(text);
    for (const text of frame.texts.slice(skip)) this.texts.push(text);
    let end = known;
    this.put("topEnd", this.n, Uint32Array.from(arrays.top_count.subarray(skip), (count) => (end += count)));
    this.n += fresh;
  }

  takeRouting(start, arrays) {
    const width = this.rows * this.slots, skip = this.m - start;
    const fresh = (width ? arrays.experts.length / width : 0) - skip;
    if (fresh <= 0) return;
    this.put("experts", this.m * width, arrays.experts.subarray(skip * width));
    this.put("weights", this.m * width, arrays.weights.subarray(skip * width));
    this.put("margin", this.m * this.rows, arrays.margin.subarray(skip * this.rows));
    this.count(this.load.all, this.m, this.m + fresh);
    for (let t = this.m; t < this.m + fresh; t++) {
      const kind = this.column.kinds[t];
      this.counted.all++;
      if (kind === THINKING) { this.count(this.load.thinking, t, t + 1); this.counted.thinking++; }
      if (kind === ANSWER) { this.count(this.load.answer, t, t + 1); this.counted.answer++; }
    }
    this.m += fresh;
  }

  /** Adds the choices of tokens a … b − 1 to a load [row × expert]. */
  count(load, a, b) {
    const width = this.rows * this.slots, { experts } = this.column;
    for (let at = a * width; at < b * width; at++) {
      load[Math.floor((at % width) / this.slots) * this.experts + experts[at]]++;
    }
    return load;
  }

  put(name, at, values) {
    const old = this.column[name], need = at + values.length;
    if (need > old.length) {
      const longer = new old.constructor(Math.max(need, old.length * 2));
      longer.set(old);
      this.column[name] = longer;
    }
    this.column[name].set(values, at);
  }

  /** Likeliest tokens at i, falling: id, text, probability. */
  top(i) {
    const { topEnd, topP, topIds } = this.column, found = [];
    for (let k = i ? topEnd[i - 1] : 0; k < topEnd[i]; k++) found.push({ id: topIds[k], text: this.topTexts[k], p: topP[k] });
    return found;
  }

  /** Smallest margin over the layers of token i, NaN when not routed. */
  margin(i) {
    if (i >= this.m) return NaN;
    let least = Infinity;
    for (let row = 0; row < this.rows; row++) least = Math.min(least, half(this.column.margin[i * this.rows + row]));
    return least;
  }

  /** Chosen experts of token i in a row, with their weights 0 … 1. */
  choices(i, row) {
    const at = (i * this.rows + row) * this.slots, found = [];
    if (i < 0 || i >= this.m) return found;
    for (let s = 0; s < this.slots; s++) found.push({ expert: this.column.experts[at + s], weight: this.column.weights[at + s] / 255 });
    return found;
  }

  /** Which tokens an expert computed: one byte per token. @returns {Uint8Array} */
  users(row, expert) {
    const mask = new Uint8Array(this.n), width = this.rows * this.slots, { experts } = this.column;
    if (row < 0 || row >= this.rows || expert < 0) return mask;
    for (let t = 0; t < this.m; t++) {
      const at = t * width + row * this.slots;
      for (let s = 0; s < this.slots; s++) if (experts[at + s] === expert) mask[t] = 1;
    }
    return mask;
  }
}

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
  }

  get(name) { return this.model.get(name); }

  /** Calls `act` after every change, until the signal. @param {() => void} act @param {AbortSignal} signal */
  listen(act, signal) {
    this.listeners.add(act);
    signal.addEventListener("abort", () => this.listeners.delete(act));
  }

  tell() { for (const act of [...this.listeners]) act(); }

  send(message) {
    this.notice = "";
    try { this.model.send(message); } catch (error) { this.notice = `The kernel cannot be reached: ${error}`; }
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
  clear() { this.select({ playhead: -1, layer: -1, expert: -1, pin: [-1, -1, -1], range: [] }); }

  pinned() {
    const pin = this.model.get("pin");
    return Array.isArray(pin) && pin.length === 3 ? pin : [-1, -1, -1];
  }

  /** The selected tokens [a, b), or null. */
  range() {
    const range = this.model.get("range") ?? [];
    return range.length === 2 && range[0] < range[1] ? range.map((i) => clamp(i, 0, this.data.n)) : null;
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
    this.epoch = epoch;
    this.data = new TraceData(this.model.get("about") ?? {});
  }

  receive(message, buffers) {
    if (message?.type === "error") this.notice = `${message.found} Expected: ${message.expected}`;
    if (message?.type === "frame") this.takeFrame(message, buffers);
    this.tell();
  }

  takeFrame(frame, buffers) {
    if (frame.epoch < this.epoch) return;
    if (frame.epoch > this.epoch) { // another run: begin anew
      this.data = new TraceData(frame.about);
      this.epoch = frame.epoch;
    }
    let whole = false;
    try { whole = this.data.accept(frame, buffers ?? []); } catch (error) { this.notice = String(error); }
    if (!whole) this.resync();
  }

  /** Asks for all beyond what is known; not more often than twice a second. */
  resync() {
    if (Date.now() - this.asked < 500) return;
    this.asked = Date.now();
    try {
      this.model.send({ type: "resync", epoch: this.epoch, from: this.data.n, routed: this.data.m });
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
  for (const name of [...SELECTION, "status"]) model.on(`change:${name}`, () => store.tell());
  model.on("change:epoch", () => { store.renew(); store.tell(); });
  register(id, store);
  signal?.addEventListener("abort", () => { if (store.model === model) stores.delete(id); });
  store.asked = 0;
  store.resync();
}

export default { initialize };
