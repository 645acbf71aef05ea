import { registry } from "./_kit.js";
import dashboard from "./dashboard.js";
import store from "./store.js";

/**
 * A page of its own: the dashboard of a recorded run, alone or with its branches, without a kernel
 * and without a network. Not here: how the page is written (k2lab/widgets/page.py).
 */

/**
 * Stands for anywidget's model: traits are kept, and nobody is behind it but the details of the page.
 * @param {Record<string, any>} traits @param {Map<string, [any, ArrayBuffer[]]>} [details] by key
 */
export function pageModel(traits, details = new Map()) {
  const values = { ...traits }, handlers = new Map();
  const emit = (name, ...rest) => { for (const act of [...(handlers.get(name) ?? [])]) act(...rest); };
  return {
    get: (name) => values[name],
    set(name, value) {
      if (Object.is(values[name], value)) return;
      values[name] = value;
      emit(`change:${name}`);
    },
    save_changes() { /* nobody to save to */ },
    send(message) {
      if (message.type !== "detail") return;
      const missing = { type: "detail", key: message.key, arrays: "", provenance: "missing", note: "It was not saved with this page. A live lab computes it when asked." };
      queueMicrotask(() => emit("msg:custom", ...(details.get(message.key) ?? [missing, []])));
    },
    on(name, act) { handlers.set(name, [...(handlers.get(name) ?? []), act]); },
    off(name, act) { handlers.set(name, (handlers.get(name) ?? []).filter((one) => one !== act)); },
    emit,
  };
}

/** Bytes from base64. @param {string} text @returns {ArrayBuffer} */
export function bytes(text) { return Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer; }

/**
 * What a page holds of one run: the traits of its store, with what it begins like another that stands
 * before it, and its frames and details.
 * @typedef {{traits: Record<string, any>, begins: {run: string, tokens: number, routed: number, moved: number, calls: number} | null, messages: [any, ArrayBuffer[]][]}} Run
 */

/**
 * Shows a run; the others are there to be compared with it.
 * @param {HTMLElement} host @param {{shown: string, view: Record<string, any>, runs: Run[]}} page
 */
export function mount(host, { shown, view, runs }) {
  const models = new Map();
  for (const { traits, begins, messages } of runs) {
    const details = new Map(messages.filter(([message]) => message.type === "detail").map((one) => [one[0].key, one]));
    const model = pageModel(traits, details), { stores } = registry();
    models.set(traits.store_id, model);
    store.initialize({ model });
    if (begins) stores.get(traits.store_id).data.share(stores.get(begins.run).data, begins);
    for (const [message, buffers] of messages) if (message.type === "frame") model.emit("msg:custom", message, buffers);
  }
  const board = pageModel({ ...view, store_id: shown });
  dashboard.render({ model: board, el: host });
  return { model: models.get(shown), view: board };
}

/** Shows what is written in this page. */
export function mountHere() {
  const text = (id) => document.getElementById(id)?.textContent ?? "", page = JSON.parse(text("k2-page") || "null");
  if (!page) return;
  for (const run of page.runs) run.messages = run.messages.map(([message, ids]) => [message, ids.map((id) => bytes(text(id)))]);
  mount(/** @type {HTMLElement} */ (document.getElementById("k2-run")), page);
}

export default { mount, mountHere };
