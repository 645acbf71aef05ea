/**
 * Shared by every widget: the kinds of tokens, numbers as people read them, arrays out of frames.
 * Nothing here touches the page.
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

/** A kind's colour in CSS. @param {number} code @param {number} [opacity] */
export function kindColour(code, opacity = 1) { return `rgba(${KIND_COLOURS[KINDS[code]].join(",")},${opacity})`; }

/** @param {number} value @param {number} low @param {number} high */
export function clamp(value, low, high) { return Math.min(high, Math.max(low, value)); }

/** Share as percentage, with no more digits than it deserves, in one piece. @param {number} share */
export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = share * 100;
  if (value > 0 && value < 0.05) return "<\u00a00.1\u00a0%";
  if (value > 99.5 && value < 100) return `${Math.min(99.9, value).toFixed(1)}\u00a0%`; // not yet certain
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)}\u00a0%`;
}

/** A number with `digits` decimals, or a dash for none. @param {number} value @param {number} [digits] */
export function decimal(value, digits = 2) { return Number.isFinite(value) ? value.toFixed(digits) : "–"; }

/** A difference, its sign in front. @param {number} value @param {number} [digits] */
export function signed(value, digits = 2) { return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`; }

/** IEEE half precision to number. @param {number} bits */
export function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 32768 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array, float16: Uint16Array };

/**
 * Typed arrays by name from "name:type:AxBxC …" and one buffer with all of them. float16 stays raw (see half).
 * @param {string} layout @param {(DataView|ArrayBuffer)[]} buffers @returns {Record<string, any>}
 */
export function unpack(layout, [whole = new ArrayBuffer(0)]) {
  /** @type {Record<string, any>} */
  const arrays = {}, end = whole.byteLength;
  const [bytes, first] = ArrayBuffer.isView(whole) ? [whole.buffer, whole.byteOffset] : [whole, 0];
  let at = 0;
  for (const entry of layout.split(" ").filter(Boolean)) {
    const [name, type, shape] = entry.split(":"), size = shape.split("x").reduce((product, side) => product * Number(side), TYPES[type]?.BYTES_PER_ELEMENT);
    if (!(at + size <= end)) throw new Error(`Damaged frame: ${entry}`);
    const Type = TYPES[type], from = first + at, aligned = from % Type.BYTES_PER_ELEMENT === 0;
    arrays[name] = aligned ? new Type(bytes, from, size / Type.BYTES_PER_ELEMENT) : new Type(bytes.slice(from, from + size)); // a copy is aligned
    at += size;
  }
  if (at !== end) throw new Error(`Damaged frame: ${end - at} bytes too many`);
  return arrays;
}
