import { isDark } from "./_colour.js";

/**
 * Shared by every widget: pens. A picture is drawn once, with the few calls of a canvas' pen that
 * both pens here know: on a canvas for the page and PNG, or as SVG text. Not here: what is drawn.
 */

/** Colours and fonts of the page as a picture needs them. @param {Element} root */
export function inkOf(root) {
  const style = getComputedStyle(root), value = (name, other) => style.getPropertyValue(name).trim() || other;
  const resolve = (name, other) => { // a canvas cannot resolve variables or color-mix
    const probe = root.ownerDocument.createElement("span");
    probe.style.color = value(name, other);
    root.append(probe);
    const colour = getComputedStyle(probe).color;
    probe.remove();
    return colour;
  };
  const key = `${style.color}|${style.backgroundColor}|${value("--k2-accent", "")}|${value("--k2-dim", "")}`;
  if (inks.get(root)?.key !== key) {
    inks.set(root, { key, ink: {
      fg: style.color, bg: style.backgroundColor, dark: isDark(style.backgroundColor),
      dim: resolve("--k2-dim", style.color), line: resolve("--k2-line", "#999"), soft: resolve("--k2-bar", "#ccc"),
      accent: resolve("--k2-accent", "#0072b2"), pin: isDark(style.backgroundColor) ? "#ff9a4d" : "#d55e00",
      sans: style.fontFamily, mono: value("--k2-mono", "monospace"),
    } });
  }
  return inks.get(root).ink;
}

/** @type {WeakMap<Element, {key: string, ink: any}>} */
const inks = new WeakMap();

/**
 * The canvas' pen, its size set in CSS px and its pixels whole.
 * @param {HTMLCanvasElement} canvas @param {number} width @param {number} height @param {number} [ratio]
 */
export function canvasPen(canvas, width, height, ratio = devicePixelRatio || 1) {
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w; canvas.height = h;
    canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  }
  const pen = /** @type {any} */ (canvas.getContext("2d"));
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.imageSmoothingEnabled = false;
  return pen;
}

/** A filled box. @param {any} pen @param {string} colour @param {number[]} box x, y, width, height */
export function fillBox(pen, colour, box, opacity = 1) {
  pen.fillStyle = colour; pen.globalAlpha = opacity;
  pen.fillRect(...box);
  pen.globalAlpha = 1;
}

/** A box's outline. @param {any} pen @param {string} colour @param {number[]} box x, y, width, height */
export function strokeBox(pen, colour, box, width = 1) {
  pen.strokeStyle = colour; pen.lineWidth = width;
  pen.strokeRect(...box);
}

/** Words at a point, on one side of it. @param {any} pen @param {string} colour @param {string} text @param {"left"|"center"|"right"} [align] @param {number} [most] px wide */
export function putText(pen, colour, text, x, y, align = "left", most = undefined) {
  pen.fillStyle = colour; pen.textAlign = align;
  pen.fillText(text, x, y, most);
}

/** A pen that writes SVG; the same properties and calls as a canvas' pen. @param {number} width @param {number} height */
export function svgPen(width, height) {
  const parts = [], path = [], number = (x) => String(Math.round(x * 100) / 100);
  const mark = (tag, attributes, text) => {
    const body = Object.entries(attributes).map(([name, value]) => ` ${name}="${xml(typeof value === "number" ? number(value) : value)}"`).join("");
    parts.push(text === undefined ? `<${tag}${body}/>` : `<${tag}${body}>${xml(text)}</${tag}>`);
  };
  return {
    fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, font: "11px sans-serif", textAlign: "left", textBaseline: "alphabetic", globalAlpha: 1, imageSmoothingEnabled: false,
    fillRect(x, y, w, h) { mark("rect", { x, y, width: w, height: h, fill: this.fillStyle, opacity: this.globalAlpha }); },
    strokeRect(x, y, w, h) { mark("rect", { x, y, width: w, height: h, fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth, opacity: this.globalAlpha }); },
    fillText(text, x, y, most) {
      const [, weight, size, family] = /^(?:(\w+) )?([\d.]+)px (.*)$/.exec(this.font) ?? ["", "", "11", "sans-serif"];
      const anchor = { left: "start", start: "start", center: "middle", right: "end", end: "end" }[this.textAlign];
      const down = { middle: 0.35, top: 0.8, bottom: -0.2, alphabetic: 0 }[this.textBaseline] * Number(size);
      const long = most && text.length * Number(size) * 0.62 > most ? { textLength: most, lengthAdjust: "spacingAndGlyphs" } : {};
      mark("text", { x, y: y + down, fill: this.fillStyle, "font-size": Number(size), "font-family": family, "text-anchor": anchor, ...(weight ? { "font-weight": weight } : {}), ...long, opacity: this.globalAlpha, "xml:space": "preserve" }, text);
    },
    beginPath() { path.length = 0; },
    moveTo(x, y) { path.push(`M${number(x)} ${number(y)}`); },
    lineTo(x, y) { path.push(`L${number(x)} ${number(y)}`); },
    stroke() { mark("path", { d: path.join(""), fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth, opacity: this.globalAlpha }); },
    fill() { mark("path", { d: `${path.join("")}Z`, fill: this.fillStyle, opacity: this.globalAlpha }); },
    drawImage(canvas, x, y, w, h) { mark("image", { x, y, width: w, height: h, preserveAspectRatio: "none", style: "image-rendering:pixelated", href: canvas.toDataURL("image/png") }); },
    text: () => `<svg xmlns="http://www.w3.org/2000/svg" width="${number(width)}" height="${number(height)}" viewBox="0 0 ${number(width)} ${number(height)}">\n${parts.join("\n")}\n</svg>\n`,
  };
}

/** Text inside XML. @param {string} text */
export function xml(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  // What XML 1.0 does not allow, not even as a reference, becomes a box.
  return String(text).replace(/[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/gu, "□").replace(/[&<>"']/g, (one) => names[one]);
}

/**
 * A picture as a file: drawn on a canvas of double density, or as SVG.
 * @param {"png"|"svg"} kind @param {{width: number, height: number}} size
 * @param {(pen: any) => void} paint @param {string} background @returns {Promise<Blob>}
 */
export async function pictureFile(kind, size, paint, background) {
  const canvas = document.createElement("canvas");
  const pen = kind === "svg" ? svgPen(size.width, size.height) : canvasPen(canvas, size.width, size.height, 2);
  pen.fillStyle = background;
  pen.fillRect(0, 0, size.width, size.height);
  paint(pen);
  if (kind === "svg") return new Blob([pen.text()], { type: "image/svg+xml" });
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(/** @type {Blob} */ (blob)), "image/png"));
}

/** Gives the person a file. @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement("a"), address = URL.createObjectURL(blob);
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/**
 * What seldom changes, drawn once and then copied: the part of a picture below pointer and selection.
 * An SVG is drawn whole.
 * @param {{canvas: HTMLCanvasElement, key: string}} kept @param {any} pen
 * @param {{width: number, height: number}} at @param {string} key of all that the part depends on @param {(pen: any) => void} paint
 */
export function backdrop(kept, pen, at, key, paint) {
  if (!pen.canvas) { paint(pen); return; }
  const ratio = pen.getTransform().a, now = `${key}|${at.width}|${at.height}|${ratio}`;
  if (kept.key !== now) { paint(canvasPen(kept.canvas, at.width, at.height, ratio)); kept.key = now; }
  pen.drawImage(kept.canvas, 0, 0, at.width, at.height);
}

/**
 * A matrix of values 0 … 1 as a small canvas, one pixel each, to be drawn larger.
 * @param {HTMLCanvasElement} canvas @param {number} rows @param {number} columns
 * @param {(row: number, column: number) => number} value NaN: transparent @param {Uint8Array} colours
 */
export function pixels(canvas, rows, columns, value, colours) {
  if (canvas.width !== columns || canvas.height !== rows) { canvas.width = Math.max(1, columns); canvas.height = Math.max(1, rows); }
  const pen = /** @type {any} */ (canvas.getContext("2d")), image = pen.createImageData(Math.max(1, columns), Math.max(1, rows));
  for (let r = 0, at = 0; r < rows; r++) for (let c = 0; c < columns; c++, at += 4) {
    const share = value(r, c);
    if (Number.isNaN(share)) continue;
    const level = Math.round(Math.min(1, Math.max(0, share)) * 255) * 3;
    image.data[at] = colours[level]; image.data[at + 1] = colours[level + 1]; image.data[at + 2] = colours[level + 2]; image.data[at + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}
