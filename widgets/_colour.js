import { clamp } from "./_numbers.js";

/**
 * Shared by every widget: colour ramps, and light or dark.
 */


const STOPS = {
  cividis: "00224e08337035456c4f576c6669707d7c78948e77aea371c8b866e5cf52fee838",
  viridis: "440154482475414487355f8d2a788e21918c22a88444bf707ad151bddf26fde725",
  blueOrangeLight: "0a4a90246fb55698cd93c0e0cadfeef4f3f0fbdcb8f9b877ee8a35cf6210983f00",
  blueOrangeDark: "8cc8ff5aa5e83983c72864992048692a2c304c3620854f1bbd6c17ec8d2fffb866",
};

/** Marks of two directions that colour-blind people tell apart. */
export const ORANGE = "#d98a3d", BLUE = "#5b9bd5";

/**
 * 256 colours as [r, g, b, r, g, b, …].
 * @param {string} name cividis, viridis or diverging @param {boolean} dark for the diverging middle
 */
export function ramp(name, dark = false) {
  const known = ramps.get(`${name}|${dark}`);
  if (known) return known;
  const hex = name === "diverging" ? (dark ? STOPS.blueOrangeDark : STOPS.blueOrangeLight) : STOPS[name] ?? STOPS.cividis;
  const count = hex.length / 6 - 1, colours = new Uint8Array(768);
  const part = (stop, channel) => parseInt(hex.slice(stop * 6 + channel * 2, stop * 6 + channel * 2 + 2), 16);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * count, low = Math.min(count - 1, Math.floor(at)), share = at - low;
    for (let c = 0; c < 3; c++) colours[i * 3 + c] = Math.round(part(low, c) * (1 - share) + part(low + 1, c) * share);
  }
  ramps.set(`${name}|${dark}`, colours);
  return colours;
}

/** @type {Map<string, Uint8Array>} */
const ramps = new Map();

/**
 * A ramp for marks on the page: it runs away from the background, so that what is high stands out.
 * @param {string} name @param {boolean} dark whether the page is
 */
export function rampOn(name, dark) {
  const colours = ramp(name), key = `${name}|on`;
  if (dark) return colours;
  if (!ramps.has(key)) ramps.set(key, Uint8Array.from(colours, (_, i) => colours[765 - 3 * Math.floor(i / 3) + (i % 3)]));
  return /** @type {Uint8Array} */ (ramps.get(key));
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
