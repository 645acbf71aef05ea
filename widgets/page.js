import dashboard from "./dashboard.js";
import store from "./store.js";

/**
 * A page of its own: the dashboard of a recorded run, without a kernel and without a network. Not
 * here: how the page is written (k2lab/widgets/page.py).
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
 * Shows a run.
 * @param {HTMLElement} host @param {{store: Record<string, any>, view: Record<string, any>}} traits
 * @param {[any, ArrayBuffer[]][]} messages frames and details, in order
 */
export function mount(host, traits, messages) {
  const details = new Map(messages.filter(([message]) => message.type === "detail").map((one) => [one[0].key, one]));
  const model = pageModel(traits.store, details), view = pageModel({ ...traits.view, store_id: traits.store.store_id });
  store.initialize({ model });
  for (const [message, buffers] of messages) if (message.type === "frame") model.emit("msg:custom", message, buffers);
  dashboard.render({ model: view, el: host });
  return { model, view };
}

/** Shows the run that is written in this page. */
export function mountHere() {
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null"), traits = read("k2-traits");
  if (!traits) return;
  const messages = read("k2-messages").map(([message, ids]) => [message, ids.map((id) => bytes(document.getElementById(id)?.textContent ?? ""))]);
  mount(/** @type {HTMLElement} */ (document.getElementById("k2-run")), traits, messages);
}

export default { mount, mountHere };
