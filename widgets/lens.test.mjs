import assert from "node:assert/strict";
import { test } from "node:test";

import { ABOUT, frame } from "./_fake.test.mjs";
import * as lens from "./lens.js";
import { TraceData } from "./_columns.js";

function filled() {
  const data = new TraceData(ABOUT);
  data.accept(...frame(0, 6));
  return data;
}

/** Scores of 2 rows × 4 experts; the bias of expert 3 is −0.5, so its score alone would be the best. */
function detail() {
  const scores = new Float32Array([0.1, 0.5, 0.4, 0.9, 0.1, 0.5, 0.4, 0.9]);
  return { scores, choice: scores.map((score, i) => (i % 4 === 3 ? score - 0.5 : score)) };
}

test("a layer shows the chosen as recorded, then who nearly was, with score and bias apart", () => {
  const { marks, margin } = lens.layerOf(filled(), 1, 0, detail());
  assert.deepEqual(marks.map((one) => [one.expert, one.chosen]), [[1, true], [2, true], [3, false], [0, false]]);
  assert.ok(Math.abs(marks[2].bias + 0.5) < 1e-6 && Math.abs(marks[2].score - 0.9) < 1e-6);
  assert.deepEqual([marks[0].weight, marks[1].weight, margin], [0.6, 0.4, 0.5]);
});

test("without scores there are the chosen alone, and nothing is made up", () => {
  const { marks } = lens.layerOf(filled(), 1, 0, null);
  assert.deepEqual(marks.map((one) => one.expert), [1, 2]);
  assert.ok(marks.every((one) => Number.isNaN(one.score) && Number.isNaN(one.bias)));
});

test("runners-up outside the kept groups are not shown", () => {
  const arrays = detail();
  arrays.choice[0] = -Infinity;
  assert.deepEqual(lens.layerOf(filled(), 1, 0, arrays).marks.map((one) => one.expert), [1, 2, 3]);
});

test("chips are found again at their middles, on wide and narrow pages, at both sizes", () => {
  for (const width of [520, 620, 900, 1200]) for (const [rows, slots] of [[5, 8], [60, 8]]) {
    const at = lens.place(width, rows, slots, slots + 3);
    for (const [row, slot] of [[0, 0], [rows - 1, slots + 2]]) {
      assert.deepEqual(lens.chipAt(at, at.left + (slot + 0.5) * at.chip, at.top + (row + 0.5) * at.line), { row, slot });
    }
    assert.equal(lens.chipAt(at, at.left - 2, at.top + 2), null);
    assert.ok(at.focus.x + at.focus.width <= width && at.marginAt + at.margin <= (at.focus.x || width), `${width}`);
  }
});

test("near ties stand out", () => {
  assert.equal(lens.tie(0.5), 0);
  assert.ok(lens.tie(0.0001) > lens.tie(0.01));
  assert.equal(lens.tie(0), 1);
});

test("a chip and the table say what is known", () => {
  const data = filled(), { marks, margin } = lens.layerOf(data, 1, 0, detail());
  assert.equal(lens.chipWords(1, marks[1], 1, margin, 2), "Layer 1, expert 2 · rank 2, weight 0.40 · score 0.4000, bias +0.0000 · margin 0.5000");
  assert.equal(lens.chipWords(1, marks[2], 2, margin, 2), "Layer 1, expert 3 · not chosen, number 3 · score 0.9000, bias -0.5000 · margin 0.5000");
  assert.deepEqual(lens.lensRows(data, 1, detail())[0], ["1", "1, 2", "0.60, 0.40", "0.500, 0.400", "0.000, 0.000", "3 (0.900)", "0.5000"]);
  assert.equal(lens.lensRows(data, 1, null)[0][3], "–, –");
});

test("the layer in focus stays where its line is, beside it or over its neighbours", () => {
  const [wide, narrow, few] = [lens.place(900, 60, 8, 11, 50), lens.place(550, 60, 8, 11, 50), lens.place(550, 5, 8, 11, 3)];
  const line = wide.top + 50 * wide.line;
  assert.ok(wide.focus.y < line && line < wide.focus.y + wide.focus.height && !wide.focus.over);
  assert.ok(narrow.focus.over && narrow.focus.y + narrow.focus.height <= line);
  assert.ok(lens.place(550, 60, 8, 11, 2).focus.y > narrow.top + 2 * narrow.line);
  assert.ok(!few.focus.over && few.focus.y > few.top + 5 * few.line && few.height === few.focus.y + few.focus.height);
});
