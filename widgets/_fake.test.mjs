/** Stands for anywidget's model and for the kernel's frames; has no tests of its own. */

export const ABOUT = { layers: 3, dense_layers: 1, experts: 4, slots: 2 };

/** Stands for anywidget's model. */
export function fakeModel(state = {}) {
  const values = { store_id: `id-${Math.random()}`, epoch: 1, about: ABOUT, pin: [-1, -1, -1], range: [], playhead: -1, layer: -1, expert: -1, ...state };
  const handlers = {}, sent = [];
  return {
    sent, values, saved: 0,
    get: (name) => values[name],
    set(name, value) { values[name] = value; for (const act of handlers[`change:${name}`] ?? []) act(); },
    save_changes() { this.saved++; },
    send: (message) => sent.push(message),
    on(name, act) { (handlers[name] ??= []).push(act); },
    emit(name, ...values) { for (const act of handlers[name] ?? []) act(...values); },
  };
}

/** A frame with tokens start … start + count − 1, each routed to experts (t mod 4) and (t + 1 mod 4). */
export function frame(start, count, kind = 3) {
  const tokens = Array.from({ length: count }, (_, k) => start + k);
  const arrays = {
    ids: Uint32Array.from(tokens), kinds: Uint8Array.from(tokens, () => kind), entropy: Float32Array.from(tokens, () => 0.5),
    logprob: Float32Array.from(tokens, () => -1), seconds: Float32Array.from(tokens), top_count: Uint8Array.from(tokens, () => 2),
    top_ids: Uint32Array.from(tokens.flatMap((t) => [t, 99])), top_p: Uint16Array.from(tokens.flatMap(() => [0x3800, 0x3400])),
    experts: Uint16Array.from(tokens.flatMap((t) => [t % 4, (t + 1) % 4, t % 4, (t + 1) % 4])),
    weights: Uint8Array.from(tokens.flatMap(() => [153, 102, 153, 102])), margin: Uint16Array.from(tokens.flatMap(() => [0x3800, 0x3400])),
  };
  const types = { top_p: "float16", margin: "float16" };
  const layout = Object.entries(arrays).map(([name, array]) => `${name}:${types[name] ?? array.constructor.name.replace("Array", "").toLowerCase()}:${array.length}`).join(" ");
  const header = { type: "frame", epoch: 1, about: ABOUT, start, routed: start, arrays: layout, texts: tokens.map((t) => `t${t}`), tops: tokens.flatMap((t) => [`t${t}`, "?"]), calls: [] };
  return [header, joined(arrays)];
}

/** Arrays behind each other, as they travel. */
export function joined(arrays) {
  return [Uint8Array.from(Object.values(arrays).flatMap((array) => [...new Uint8Array(array.buffer, array.byteOffset, array.byteLength)])).buffer];
}
