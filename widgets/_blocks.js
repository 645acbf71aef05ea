/**
 * The text of a run in blocks: consecutive tokens of one kind, cut into pieces that are laid out
 * apart, and where these lie. Pure. Not here: what is in the page (thoughts.js).
 */

const LONGEST = 480; // tokens of a block
const LINE = 27; // px

/** Height in px of what stands above a part's first line. */
export const HEAD = 30;

/**
 * Consecutive tokens of one kind. Markers go with what follows them; a call each.
 * @typedef {{kind: number, start: number, body: number, stop: number}} Group start ≤ body < stop
 * @param {{n: number, texts: string[], column: {kinds: Uint8Array}}} data
 * @param {Group[]} groups found before; the last may still grow @returns {Group[]} the same array
 */
export function extendGroups(data, groups) {
  if (groups.length && groups[groups.length - 1].kind === 0) groups.pop();
  let last = groups[groups.length - 1], closed = false;
  for (let i = last ? last.stop : 0; i < data.n; i++) {
    const kind = data.column.kinds[i];
    if (kind === 0) { closed ||= /tool_call_begin|im_end/.test(data.texts[i]); continue; }
    if (last && last.kind === kind && !closed) last.stop = i + 1;
    else groups.push(last = { kind, start: last ? last.stop : 0, body: i, stop: i + 1 });
    closed = false;
  }
  const end = last ? last.stop : 0;
  if (end < data.n) groups.push({ kind: 0, start: end, body: data.n, stop: data.n });
  return groups;
}

/**
 * A group cut at line ends into pieces that are laid out apart, each of moderate size.
 * @typedef {{group: number, kind: number, start: number, stop: number, first: boolean, last: boolean, chars: number, breaks: number}} Block
 * @param {string[]} texts @param {Group} group @param {number} index of the group @returns {Block[]}
 */
export function cutBlocks(texts, group, index) {
  const blocks = [];
  let start = group.start, chars = 0, breaks = 0;
  const close = (stop) => {
    blocks.push({ group: index, kind: group.kind, start, stop, first: blocks.length === 0, last: stop === group.stop, chars, breaks });
    start = stop; chars = breaks = 0;
  };
  for (let i = group.start; i < group.stop; i++) {
    const text = texts[i];
    chars += text.length;
    if (text.includes("\n")) breaks++;
    if ((text.endsWith("\n") && i - start >= 60) || i - start >= LONGEST - 1) close(i + 1);
  }
  if (start < group.stop) close(group.stop);
  return blocks;
}

/** Height in px that a block will about have. @param {Block} block @param {number} columns characters per line */
export function estimate(block, columns) {
  return (block.breaks + Math.ceil(block.chars / Math.max(10, columns)) + 0.3) * LINE + (block.first ? HEAD : 0);
}

/** Running sums with a leading 0. @param {number[]} heights @returns {Float64Array} */
export function offsets(heights) {
  const sums = new Float64Array(heights.length + 1);
  heights.forEach((height, i) => { sums[i + 1] = sums[i] + height; });
  return sums;
}

/** Index of the block at a height. @param {Float64Array} sums @param {number} y */
export function blockAt(sums, y) { return lastUpTo(sums.length - 1, (k) => sums[k] <= y); }

/** Index of the block that holds a token. @param {Block[]} blocks @param {number} token */
export function blockOf(blocks, token) { return lastUpTo(blocks.length, (k) => blocks[k].start <= token); }

/** The last of `count` in order that still holds; 0 where none does. @param {number} count @param {(k: number) => boolean} holds */
function lastUpTo(count, holds) {
  let low = 0, high = count - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (holds(middle)) low = middle; else high = middle - 1;
  }
  return low;
}

/**
 * How densely an expert's tokens stand in each pixel row of the minimap, as root of their share.
 * @param {Block[]} blocks @param {ArrayLike<number>} sums @param {number[]} heights @param {Uint8Array} mask @param {number} scale @param {number} count
 */
export function useRows(blocks, sums, heights, mask, scale, count) {
  const used = new Uint32Array(count), all = new Uint32Array(count);
  if (mask.length) blocks.forEach((block, b) => {
    const step = (heights[b] * scale) / Math.max(1, block.stop - block.start);
    for (let i = block.start, y = sums[b] * scale; i < block.stop && i < mask.length; i++, y += step) { const row = Math.min(count - 1, Math.round(y)); all[row]++; used[row] += mask[i]; }
  });
  return Array.from(used, (one, row) => (one ? Math.sqrt(one / all[row]) : 0));
}

/** The call that ended in a group. @param {any[]} calls @param {Group[]} groups @param {number} index */
export function callOf(calls, groups, index) {
  const next = groups[index + 1];
  return calls.find((call) => call && call.index >= groups[index].body && (!next || next.kind === 0 || call.index < next.body));
}
