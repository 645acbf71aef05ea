/**
 * Shared by every widget: DOM building, small controls, keys, the page's stores, the view's frame.
 * Not here: what any one widget draws. `k2lab/widgets/base.py` joins a widget's own file with the
 * shared ones that it imports (a Blob URL cannot import), so a name here is taken in all of them.
 *
 * Text that a model or a tool wrote is untrusted: it enters the page as text nodes only.
 */


/**
 * An element with attributes and children; strings become text nodes. `text` sets the content.
 * @param {string} tag its name, and its classes after dots
 * @param {Record<string, any>} [attributes]
 * @param {...(Node|string)} children
 */
export function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split("."), node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

/** Writes a text where it is another: what is announced is not announced again, and what did not change is not laid out again. @param {Node} node @param {string} text */
export function setText(node, text) { if (node.textContent !== text) node.textContent = text; }

/** A part of the page that scrolls, so that keys must reach it. @param {string} tag @param {string} label @param {...(Node|string)} children */
export function region(tag, label, ...children) { return el(tag, { tabindex: 0, role: "region", "aria-label": label }, ...children); }

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
  const select = el("select.k2-select", { "aria-label": label });
  offer(select, options, chosen);
  select.addEventListener("change", () => act(select.value), { signal });
  return el("label.k2-choice", {}, el("span", { text: label }), select); // its `control` is the select
}

/** Gives a choice these options. @param {HTMLSelectElement} select @param {[string, string][]} options @param {string} chosen */
export function offer(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value, text, selected: value === chosen })));
}

/**
 * A choice that is a trait of the view's model; `act` is called when it changes, here or in Python.
 * @param {{model: any, signal: AbortSignal}} view @param {string} trait
 * @param {string} label @param {[string, string][]} options @param {() => void} act
 */
export function traitChoice({ model, signal }, trait, label, options, act) {
  const node = choice(label, options, model.get(trait), (value) => { model.set(trait, value); model.save_changes(); }, signal);
  onTrait(model, trait, () => { node.control.value = model.get(trait); act(); }, signal);
  return node;
}

/** Calls `act` when a trait changes, until the signal. @param {any} model @param {string} trait @param {() => void} act @param {AbortSignal} signal */
export function onTrait(model, trait, act, signal) {
  model.on(`change:${trait}`, act);
  signal.addEventListener("abort", () => model.off?.(`change:${trait}`, act));
}

/**
 * A line in which a person writes, and a button; `act` gets the input when it is to be sent.
 * @param {{style: string, label: string, hint?: string, word: string}} words @param {(input: HTMLInputElement) => void} act @param {AbortSignal} signal
 */
export function lineForm({ style, label, hint, word }, act, signal) {
  const input = el("input.k2-input", { type: "text", "aria-label": label, placeholder: hint, autocomplete: "off" });
  const node = el("form", { class: style }, input, el("button", { type: "submit", class: "k2-button", text: word }));
  const submit = (event) => { event.preventDefault(); act(input); };
  node.addEventListener("submit", submit, { signal });
  input.addEventListener("keydown", (event) => { // all keys are text here; JupyterLab takes Enter
    event.stopPropagation();
    if (event.key === "Enter" && !event.isComposing) submit(event);
  }, { signal });
  return { node, input };
}

/**
 * Makes these nodes the children, in this order. One that stays is not taken out and put back: a
 * click whose press and release lie on both sides of that would be lost.
 * @param {Node} parent @param {Node[]} nodes
 */
export function arrange(parent, nodes) {
  const stays = new Set(nodes);
  for (const node of [...parent.childNodes]) if (!stays.has(node)) parent.removeChild(node);
  nodes.forEach((node, k) => { if (parent.childNodes[k] !== node) parent.insertBefore(node, parent.childNodes[k] ?? null); });
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
  return el("table.k2-table", {}, el("caption", { text: caption }),
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

/** A function that remembers what was made for the latest key. @returns {(key: string, make: () => any) => any} */
export function latest() {
  let known = { key: "", value: null };
  return (key, make) => (known.key === key ? known : (known = { key, value: make() })).value;
}

/** Calls `act` when an element changes its size, until the signal. @param {Element} node @param {() => void} act @param {AbortSignal} signal */
export function onSize(node, act, signal) {
  const observer = new ResizeObserver(act);
  observer.observe(node);
  signal.addEventListener("abort", () => observer.disconnect());
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

/** Puts text on the clipboard; where that is forbidden, shows it to be copied. @param {string} text @param {HTMLElement} beside */
export async function copyText(text, beside) {
  const own = (beside.dataset.own ??= beside.textContent ?? ""); // a second click comes while it says “Copied”
  const say = (words) => { beside.textContent = words; setTimeout(() => { beside.textContent = own; }, 1500); };
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    const box = el("textarea.k2-code", { readonly: true, "aria-label": "Code", rows: String(Math.min(12, text.split("\n").length + 1)) });
    box.value = text;
    box.addEventListener("blur", () => box.remove());
    box.addEventListener("keydown", (event) => { event.stopPropagation(); if (event.key === "Escape") box.remove(); });
    beside.closest(".k2lab")?.append(box);
    box.select();
  }
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
 * Hides what the notebook keeps of this store's views for later (k2lab/widgets/stills.py), and the
 * place that it takes, until the signal.
 * @param {string} id @param {AbortSignal} signal
 */
function hideStills(id, signal) {
  const name = `.k2-still-${String(id).replace(/\W/g, "")}`;
  const style = el("style", { text: `${name}, .jp-OutputArea-child:has(${name}) { display: none; }` });
  document.head.append(style);
  signal.addEventListener("abort", () => style.remove());
}

/**
 * A widget from a function that fills `root` from a store. Errors are shown in the cell.
 * @param {(view: {model: any, store: any, root: HTMLElement, signal: AbortSignal, fail: (error: any) => void}) => void} fill
 */
export function storeView(fill) {
  return {
    fill,
    render({ model, el: host }) {
      const controller = new AbortController();
      const root = el("div.k2lab", { "data-lm-suppress-shortcuts": "true" });
      const fail = (error) => {
        console.error(error);
        controller.abort();
        root.replaceChildren(el("pre.k2-problem", { role: "alert", text: `This widget failed: ${error?.stack ?? error}` }));
      };
      const note = el("p.k2-empty", { text: "Waiting for the run …" });
      const timer = setTimeout(() => { note.textContent = "The data of this view is not in this page. Run its cell again to see it."; }, 5000);
      host.append(root);
      root.append(note);
      whenStore(model.get("store_id")).then((store) => {
        clearTimeout(timer);
        if (controller.signal.aborted) return;
        note.remove();
        hideStills(model.get("store_id"), controller.signal);
        fill({ model, store, root, signal: controller.signal, fail });
      }).catch(fail);
      return () => { clearTimeout(timer); controller.abort(); root.remove(); };
    },
  };
}
