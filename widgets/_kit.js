/**
 * Shared by every widget: DOM building, the page's stores, colour, binary decoding, small controls.
 * Not here: what any one widget draws. `k2lab/widgets/base.py` joins this file with a widget's own
 * (a Blob URL cannot import), so every name here is taken in all of them.
 *
 * Text that a model or a tool wrote is untrusted: it enters the page as text nodes only.
 */

/** Kinds in the order of their codes, as in k2lab/engine/events.py. */
export const KINDS = ["marker", "system", "user", "thinking", "answer", "call", "result"];

/** Letter that marks a kind beside its colour. */
export const LETTERS = { marker: "·", system: "S", user: "U", thinking: "T", answer: "A", call: "⚙", result: "R" };

/** Name of a kind for people. */
export const NAMES = {
  marker: "Marker", system: "System", user: "User", thinking: "Thinking",
  answer: "Answer", call: "Tool call", result: "Tool result",
};

/** Okabe–Ito colours of the kinds, as [red, green, blue]. */
export const KIND_COLOURS = {
  marker: [153, 153, 153], system: [153, 153, 153], user: [230, 159, 0], thinking: [0, 114, 178],
  answer: [0, 158, 115], call: [204, 121, 167], result: [86, 180, 233],
};

// ---------------------------------------------------------------- DOM

/**
 * An element with attributes and children; strings become text nodes. `text` sets the content.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node|string)} children
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

/**
 * A real button.
 * @param {string} label @param {() => void} act @param {AbortSignal} signal
 * @param {Record<string, any>} [attributes]
 */
export function button(label, act, signal, attributes = {}) {
  const node = el("button", { type: "button", class: "k2-button", ...attributes, text: label });
  node.addEventListener("click", act, { signal });
  return node;
}

/**
 * A labelled choice.
 * @param {string} label @param {[string, string][]} options value and text of each
 * @param {string} chosen @param {(value: string) => void} act @param {AbortSignal} signal
 */
export function choice(label, options, chosen, act, signal) {
  const select = el("select", { class: "k2-select", "aria-label": label });
  for (const [value, text] of options) select.append(el("option", { value, text, selected: value === chosen }));
  select.addEventListener("change", () => act(select.value), { signal });
  return el("label", { class: "k2-choice" }, el("span", { text: label }), select);
}

/**
 * A button that stays in or out.
 * @param {string} label @param {(on: boolean) => void} act @param {AbortSignal} signal
 */
export function toggle(label, act, signal) {
  const node = button(label, () => {
    const on = node.getAttribute("aria-pressed") !== "true";
    node.setAttribute("aria-pressed", String(on));
    act(on);
  }, signal, { "aria-pressed": "false" });
  return node;
}

/**
 * A real table of texts.
 * @param {string} caption @param {string[]} head @param {string[][]} rows
 */
export function table(caption, head, rows) {
  return el("table", { class: "k2-table" }, el("caption", { text: caption }),
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((text) => el("td", { text }))))));
}

/**
 * A function that asks for one drawing per frame, however often it is called.
 * @param {(now: number) => void} draw @param {AbortSignal} signal @param {(error: any) => void} fail
 */
export function painter(draw, signal, fail) {
  let pending = 0;
  signal.addEventListener("abort", () => cancelAnimationFrame(pending));
  return () => {
    if (pending || signal.aborted) return;
    pending = requestAnimationFrame((now) => {
      pending = 0;
      try { draw(now); } catch (error) { fail(error); }
    });
  };
}

/**
 * Calls `act` once things have been quiet for `quiet` ms, at the latest after `most` ms.
 * @param {() => void} act
 */
export function debounce(act, quiet = 60, most = 250) {
  let timer = 0, first = 0;
  return () => {
    const now = Date.now();
    first ||= now;
    clearTimeout(timer);
    timer = /** @type {any} */ (setTimeout(() => { first = 0; act(); }, Math.min(quiet, Math.max(0, first + most - now))));
  };
}

/**
 * Handles keys by name; a handled key goes no further (JupyterLab has shortcuts of its own).
 * @param {HTMLElement} node @param {(key: string, event: KeyboardEvent) => boolean} act true: handled
 * @param {AbortSignal} signal
 */
export function onKeys(node, act, signal) {
  node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !act(event.key, event)) return;
    event.preventDefault();
    event.stopPropagation();
  }, { signal });
}

// ---------------------------------------------------------------- the page's stores

/** Stores of this page by id, and who waits for one. */
export function registry() {
  return (globalThis[Symbol.for("k2lab")] ??= { stores: new Map(), waiting: new Map() });
}

/** @param {string} id @param {object} store */
export function register(id, store) {
  const { stores, waiting } = registry();
  stores.set(id, store);
  for (const resolve of waiting.get(id) ?? []) resolve(store);
  waiting.delete(id);
}

/** The store with this id, now or when it comes. @param {string} id @returns {Promise<any>} */
export function whenStore(id) {
  const { stores, waiting } = registry();
  if (stores.has(id)) return Promise.resolve(stores.get(id));
  return new Promise((resolve) => waiting.set(id, [...(waiting.get(id) ?? []), resolve]));
}

/**
 * A widget from a function that fills `root` from a store. Errors are shown in the cell.
 * @param {(view: {model: any, store: any, root: HTMLElement, signal: AbortSignal, fail: (error: any) => void}) => void} fill
 */
export function storeView(fill) {
  return {
    render({ model, el: host }) {
      const controller = new AbortController();
      const root = el("div", { class: "k2lab", "data-lm-suppress-shortcuts": "true" });
      const fail = (error) => {
        console.error(error);
        controller.abort();
        root.replaceChildren(el("pre", { class: "k2-problem", role: "alert", text: `This widget failed: ${error?.stack ?? error}` }));
      };
      const note = el("p", { class: "k2-empty", text: "Waiting for the run …" });
      const timer = setTimeout(() => { note.textContent = "The data of this view is not in this page. Run its cell again to see it."; }, 5000);
      host.append(root);
      root.append(note);
      whenStore(model.get("store_id")).then((store) => {
        clearTimeout(timer);
        if (controller.signal.aborted) return;
        note.remove();
        fill({ model, store, root, signal: controller.signal, fail });
      }).catch(fail);
      return () => { clearTimeout(timer); controller.abort(); root.remove(); };
    },
  };
}

/**
 * The line above a view: state, speed, engine, where the numbers come from; errors below it.
 * @param {any} store @param {AbortSignal} signal
 */
export function statusLine(store, signal) {
  const state = el("span", { class: "k2-state", role: "status" });
  const facts = el("span", { class: "k2-facts" });
  const badge = el("span", { class: "k2-badge" });
  const notice = el("div", { class: "k2-notice", role: "alert", hidden: true });
  const write = () => {
    const status = store.get("status") ?? {};
    const parts = statusParts(status, store.get("about") ?? {}, store.data.n);
    if (state.textContent !== parts.state) state.textContent = parts.state;
    state.dataset.state = status.state ?? "";
    facts.textContent = parts.facts;
    badge.textContent = status.provenance ?? "";
    badge.title = PROVENANCE[status.provenance] ?? "";
    const text = store.notice || status.error || "", trace = store.notice ? "" : status.traceback;
    notice.hidden = !text;
    if (notice.dataset.text === text) return;
    notice.dataset.text = text;
    notice.replaceChildren(text);
    if (trace) notice.append(el("details", {}, el("summary", { text: "Traceback" }), el("pre", { text: trace })));
  };
  store.listen(write, signal);
  write();
  return el("div", { class: "k2-head" }, el("div", { class: "k2-status" }, state, facts, badge), notice);
}

/** What a provenance badge means. */
export const PROVENANCE = {
  measured: "Read from the model while it ran.",
  derived: "Computed from what was measured.",
  missing: "Not captured in this run.",
};

/**
 * The words of the status line.
 * @param {any} status @param {any} about @param {number} tokens
 */
export function statusParts(status, about, tokens) {
  const words = { answer: "answered", length: "token limit reached", stopped: "stopped by you", budget: "step budget used up", error: "failed" };
  const name = status.state ?? "waiting";
  const state = status.reason ? `${name}: ${words[status.reason] ?? status.reason}` : name;
  const facts = [about.model, `${tokens.toLocaleString("en-GB")} tokens`];
  if (status.speed > 0) facts.push(`${status.speed < 10 ? status.speed.toFixed(1) : Math.round(status.speed)} tokens/s`);
  facts.push(status.engine, status.dtype, status.capture && `capture: ${status.capture}`);
  return { state, facts: facts.filter(Boolean).join(" · ") };
}

/** Stop, pause, step. @param {any} store @param {AbortSignal} signal */
export function controls(store, signal) {
  const send = (message) => () => store.send(message);
  const stop = button("Stop", send({ type: "stop" }), signal);
  const pause = button("Pause", () => store.send({ type: store.get("status")?.state === "paused" ? "resume" : "pause" }), signal);
  const token = button("Step token", send({ type: "step", unit: "token" }), signal);
  const layer = button("Step layer", send({ type: "step", unit: "layer" }), signal);
  const write = () => {
    const { state, controls: live } = store.get("status") ?? {}, paused = state === "paused";
    pause.textContent = paused ? "Resume" : "Pause";
    for (const node of [stop, pause]) node.disabled = !live;
    for (const node of [token, layer]) { node.disabled = !live || !paused; node.title = live && !paused ? "Pause first" : ""; }
  };
  store.listen(write, signal);
  write();
  return el("div", { class: "k2-group", role: "group", "aria-label": "Run" }, stop, pause, token, layer);
}

/** A box in which a person asks the model. @param {any} store @param {AbortSignal} signal */
export function askBox(store, signal) {
  const input = el("input", { class: "k2-input", type: "text", "aria-label": "Question to the model", autocomplete: "off" });
  const ask = el("button", { type: "submit", class: "k2-button k2-primary", text: "Ask" });
  const form = el("form", { class: "k2-ask" }, input, ask);
  const submit = (event) => {
    event.preventDefault();
    if (!input.value.trim() || ask.disabled) return;
    store.send({ type: "ask", text: input.value });
    input.value = "";
  };
  form.addEventListener("submit", submit, { signal });
  input.addEventListener("keydown", (event) => { // all keys are text here; JupyterLab takes Enter
    event.stopPropagation();
    if (event.key === "Enter" && !event.isComposing) submit(event);
  }, { signal });
  const write = () => {
    const { asks, state } = store.get("status") ?? {}, busy = state === "running" || state === "paused";
    form.hidden = !asks;
    ask.disabled = busy;
    input.placeholder = busy ? "The model is at work …" : "Ask the model something";
  };
  store.listen(write, signal);
  write();
  return form;
}

// ---------------------------------------------------------------- numbers

/** @param {number} value @param {number} low @param {number} high */
export function clamp(value, low, high) { return Math.min(high, Math.max(low, value)); }

/** Share as percentage, with no more digits than it deserves. @param {number} share */
export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = share * 100;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)} %`;
}

/** A number with `digits` decimals, or a dash for none. @param {number} value @param {number} [digits] */
export function decimal(value, digits = 2) { return Number.isFinite(value) ? value.toFixed(digits) : "–"; }

/** IEEE half precision to number. @param {number} bits */
export function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 32768 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array, float16: Uint16Array };

/**
 * Typed arrays by name from "name:type:AxBxC …" and as many buffers. float16 stays raw (see half).
 * @param {string} layout @param {(DataView|ArrayBuffer)[]} buffers @returns {Record<string, any>}
 */
export function unpack(layout, buffers) {
  /** @type {Record<string, any>} */
  const arrays = {};
  layout.split(" ").filter(Boolean).forEach((entry, place) => {
    const [name, type, shape] = entry.split(":");
    const buffer = buffers[place], size = shape.split("x").reduce((product, side) => product * Number(side), 1);
    if (!(type in TYPES) || !buffer || buffer.byteLength !== size * TYPES[type].BYTES_PER_ELEMENT) throw new Error(`Damaged frame: ${entry}`);
    const start = ArrayBuffer.isView(buffer) ? buffer.byteOffset : 0;
    const bytes = ArrayBuffer.isView(buffer) ? buffer.buffer : buffer;
    arrays[name] = new TYPES[type](bytes.slice(start, start + buffer.byteLength)); // a copy is aligned
  });
  return arrays;
}

// ---------------------------------------------------------------- colour

const STOPS = {
  cividis: "00224e08337035456c4f576c6669707d7c78948e77aea371c8b866e5cf52fee838",
  viridis: "440154482475414487355f8d2a788e21918c22a88444bf707ad151bddf26fde725",
  blueOrangeLight: "0a4a90246fb55698cd93c0e0cadfeef4f3f0fbdcb8f9b877ee8a35cf6210983f00",
  blueOrangeDark: "8cc8ff5aa5e83983c72864992048692a2c304c3620854f1bbd6c17ec8d2fffb866",
};

/**
 * 256 colours as [r, g, b, r, g, b, …].
 * @param {string} name cividis, viridis or diverging @param {boolean} dark for the diverging middle
 */
export function ramp(name, dark = false) {
  const hex = name === "diverging" ? (dark ? STOPS.blueOrangeDark : STOPS.blueOrangeLight) : STOPS[name] ?? STOPS.cividis;
  const count = hex.length / 6 - 1, colours = new Uint8Array(768);
  const part = (stop, channel) => parseInt(hex.slice(stop * 6 + channel * 2, stop * 6 + channel * 2 + 2), 16);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * count, low = Math.min(count - 1, Math.floor(at)), share = at - low;
    for (let c = 0; c < 3; c++) colours[i * 3 + c] = Math.round(part(low, c) * (1 - share) + part(low + 1, c) * share);
  }
  return colours;
}

/** CSS colour of a value 0 … 1 in a ramp. @param {Uint8Array} colours @param {number} value */
export function css(colours, value, opacity = 1) {
  const i = Math.round(clamp(value, 0, 1) * 255) * 3;
  return `rgba(${colours[i]},${colours[i + 1]},${colours[i + 2]},${opacity.toFixed(2)})`;
}

/** Colour for a strip: what does not stand out is faint. @param {Uint8Array} colours @param {number} value */
export function faint(colours, value) { return css(colours, value, 0.25 + 0.75 * clamp(value, 0, 1)); }

/** CSS gradient through a ramp, left to right. @param {Uint8Array} colours */
export function gradient(colours, colour = css) {
  return `linear-gradient(90deg, ${Array.from({ length: 9 }, (_, i) => colour(colours, i / 8)).join(", ")})`;
}

/** Whether `rgb(…)` is a dark colour. @param {string} colour */
export function isDark(colour) {
  const [r, g, b] = (colour.match(/[\d.]+/g) ?? ["255", "255", "255"]).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b < (colour.startsWith("color(") ? 0.5 : 128);
}

/** Calls `act` when the page's theme changes. @param {() => void} act @param {AbortSignal} signal */
export function onTheme(act, signal) {
  const observer = new MutationObserver(act);
  observer.observe(document.body, { attributes: true });
  observer.observe(document.documentElement, { attributes: true });
  signal.addEventListener("abort", () => observer.disconnect());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", act, { signal });
}

/** Whether the person asked for no motion. */
export function calm() { return matchMedia("(prefers-reduced-motion: reduce)").matches; }
