import { clamp, half, KINDS, unpack } from "./_numbers.js";

/**
 * A run's data in this page: columns out of frames, and what is counted from them. Not here: who
 * sends the frames and what is selected (store.js).
 */

const SNAPSHOT = 512; // tokens between two running loads, so that a range need not be counted whole
const RUNNING = { [KINDS.indexOf("thinking")]: "thinking", [KINDS.indexOf("answer")]: "answer" }; // loads that are kept; all else: rest

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
    this.version = 0; // counts what was taken in
    /** @type {string[]} */ this.texts = [];
    /** @type {string[]} */ this.topTexts = [];
    /** @type {any[]} */ this.calls = [];
    /** @type {{start: number, tokens: number, stall: number, hits: number, misses: number, bytes: Record<string, number>}[]} */ this.moves = [];
    this.column = {
      ids: new Uint32Array(256), kinds: new Uint8Array(256), entropy: new Float32Array(256),
      logprob: new Float32Array(256), seconds: new Float32Array(256), topEnd: new Uint32Array(256),
      topP: new Float32Array(256), topIds: new Uint32Array(256),
      experts: new Uint16Array(0), weights: new Uint8Array(0), margin: new Uint16Array(0),
    };
    const cells = this.rows * this.experts;
    this.load = { all: new Uint32Array(cells), thinking: new Uint32Array(cells), answer: new Uint32Array(cells), rest: new Uint32Array(cells) };
    this.counted = { all: 0, thinking: 0, answer: 0, rest: 0 };
    /** @type {Uint32Array[]} */ this.snapshots = []; // the load of the first 512, 1024 … tokens
  }

  /**
   * Takes what a frame has beyond what is known.
   * @param {any} frame its header @param {(DataView|ArrayBuffer)[]} buffers
   * @returns {boolean} false: something between is missing, ask for it
   */
  accept(frame, buffers) {
    if (frame.start > this.n || frame.routed > this.m || (frame.moved ?? 0) > this.moves.length) return false;
    const arrays = unpack(frame.arrays, buffers);
    this.takeTokens(frame, arrays);
    this.takeRouting(frame.routed, arrays);
    this.takeMoves(frame, arrays);
    for (const call of frame.calls ?? []) this.calls[call.place] = call;
    this.version++;
    return true;
  }

  /**
   * Begins as another run does: with its first tokens, their routing, what was brought and asked.
   * @param {TraceData} other @param {{tokens: number, routed: number, moved: number, calls: number}} common
   */
  share(other, { tokens, routed, moved, calls }) {
    const { column } = other, width = this.rows * this.slots, top = tokens ? column.topEnd[tokens - 1] : 0;
    for (const name of ["ids", "kinds", "entropy", "logprob", "seconds", "topEnd"]) this.put(name, 0, column[name].subarray(0, tokens));
    for (const name of ["topIds", "topP"]) this.put(name, 0, column[name].subarray(0, top));
    this.texts = other.texts.slice(0, tokens);
    this.topTexts = other.topTexts.slice(0, top);
    this.n = tokens;
    this.takeRouting(0, { experts: column.experts.subarray(0, routed * width), weights: column.weights.subarray(0, routed * width), margin: column.margin.subarray(0, routed * this.rows) });
    this.moves = other.moves.slice(0, moved);
    this.calls = other.calls.slice(0, calls);
    this.version++;
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
    const fresh = (width && arrays.experts ? arrays.experts.length / width : 0) - skip;
    if (fresh <= 0) return;
    this.put("experts", this.m * width, arrays.experts.subarray(skip * width));
    this.put("weights", this.m * width, arrays.weights.subarray(skip * width));
    this.put("margin", this.m * this.rows, arrays.margin.subarray(skip * this.rows));
    const end = this.m + fresh;
    for (let first = this.m, stop; first < end; first = stop) {
      stop = Math.min(end, (Math.floor(first / SNAPSHOT) + 1) * SNAPSHOT);
      for (const [kind, from, to] of this.runs(first, stop)) {
        const name = RUNNING[kind] ?? "rest";
        this.count(this.load[name], from, to);
        this.counted[name] += to - from;
      }
      if (stop % SNAPSHOT === 0) this.snapshots.push(this.sum(new Uint32Array(this.load.all.length)));
    }
    this.sum(this.load.all);
    this.counted.all += fresh;
    this.m += fresh;
  }

  /** What an offloading engine brought for each forward. */
  takeMoves({ moved = 0, links = [] }, arrays) {
    const count = arrays.move_start?.length ?? 0;
    for (let k = this.moves.length - moved; k < count; k++) {
      const bytes = arrays.move_bytes.subarray(k * links.length, (k + 1) * links.length);
      this.moves.push({ start: arrays.move_start[k], tokens: arrays.move_tokens[k], stall: arrays.move_stall[k], hits: arrays.move_hits[k], misses: arrays.move_misses[k], bytes: Object.fromEntries(links.map((link, i) => [link, bytes[i]])) });
    }
  }

  /** The load of all tokens counted so far, into `all`. @param {Uint32Array} all */
  sum(all) {
    const { thinking, answer, rest } = this.load;
    for (let i = 0; i < all.length; i++) all[i] = thinking[i] + answer[i] + rest[i];
    return all;
  }

  /** Adds the choices of tokens a … b − 1, times `sign`, to a load [row × expert]. */
  count(load, a, b, sign = 1) {
    const { rows, slots } = this, { experts } = this.column;
    for (let at = a * rows * slots, t = a; t < b; t++) {
      for (let base = 0, row = 0; row < rows; row++, base += this.experts) {
        for (let s = 0; s < slots; s++) load[base + experts[at++]] += sign;
      }
    }
    return load;
  }

  /** The load of tokens a … b − 1 [row × expert], from the snapshots nearest to both ends. */
  loadOf(a, b) {
    const [from, to] = [clamp(a, 0, this.m), clamp(b, 0, this.m)], load = new Uint32Array(this.load.all.length);
    const until = (end, sign) => { // adds the load of the first `end` tokens
      const near = Math.min(this.snapshots.length, Math.round(end / SNAPSHOT)), known = this.snapshots[near - 1];
      if (known) for (let i = 0; i < load.length; i++) load[i] += sign * known[i];
      if (near * SNAPSHOT <= end) this.count(load, near * SNAPSHOT, end, sign);
      else this.count(load, end, near * SNAPSHOT, -sign);
    };
    if (to - from < SNAPSHOT) return this.count(load, from, Math.max(from, to));
    until(to, 1);
    until(from, -1);
    return load;
  }

  /** The load of all tokens of a kind [row × expert], and how many they are. @param {number} kind */
  loadOfKind(kind) {
    const load = new Uint32Array(this.load.all.length);
    let tokens = 0;
    for (const [one, from, to] of this.runs(0, this.m)) if (one === kind) { this.count(load, from, to); tokens += to - from; }
    return { load, tokens };
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

  /** Weights of one token's choices [row × expert]. */
  weightsOf(i) {
    const values = new Float32Array(this.rows * this.experts);
    for (let row = 0; row < this.rows; row++) for (const { expert, weight } of this.choices(i, row)) values[row * this.experts + expert] = weight;
    return values;
  }

  /** How even a row's load is: entropy (1: even), Gini (0: even), dormant share; null without load. */
  evenness(load, row) {
    const { experts } = this, counts = load.slice(row * experts, (row + 1) * experts).sort(); // typed: by value
    let total = 0, entropy = 0, gini = 0, dormant = 0;
    for (const count of counts) total += count;
    if (!total) return null;
    for (let i = 0; i < experts; i++) {
      const share = counts[i] / total;
      if (share) entropy -= share * Math.log(share); else dormant++;
      gini += (2 * (i + 1) - experts - 1) * share;
    }
    return { entropy: entropy / Math.log(experts), gini: gini / experts, dormant: dormant / experts };
  }

  /** Differences of load shares, thinking − answer [row × expert], and the largest size. */
  difference() {
    const { load } = this, values = new Float32Array(this.rows * this.experts);
    const perRow = (kind) => Math.max(1, this.counted[kind] * this.slots);
    let most = 0;
    for (let i = 0; i < values.length; i++) {
      values[i] = load.thinking[i] / perRow("thinking") - load.answer[i] / perRow("answer");
      most = Math.max(most, Math.abs(values[i]));
    }
    return { values, most };
  }

  /** Tokens a … b − 1 in runs of one kind: kind, first token, the one after the last. */
  *runs(a, b) {
    const { kinds } = this.column;
    for (let start = a, stop; start < b; start = stop) {
      stop = start + 1;
      while (stop < b && kinds[stop] === kinds[start]) stop++;
      yield [kinds[start], start, stop];
    }
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
