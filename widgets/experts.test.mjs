import assert from "node:assert/strict";
import { test } from "node:test";

import { ABOUT, frame } from "./_fake.test.mjs";
import * as experts from "./experts.js";
import { TraceData } from "./_columns.js";

function filled() {
  const data = new TraceData(ABOUT);
  data.accept(...frame(0, 4, 3));
  data.accept(...frame(4, 2, 4));
  return data;
}

test("K2's 60 × 384 and K2-nano's 5 × 64 fit, on narrow and wide pages", () => {
  for (const [rows, count] of [[60, 384], [5, 64]]) for (const width of [560, 1100]) for (const ratio of [1, 2]) {
    const at = experts.place(width, rows, count, ratio);
    assert.ok(at.cell * ratio >= 1 && Number.isInteger(at.cell * ratio), "whole device pixels");
    assert.ok(at.height < 420 && at.right < width);
    if (width === 1100) assert.ok(at.width <= width);
  }
});

test("every cell is found again at its middle, and nothing beside the map", () => {
  const at = experts.place(1100, 60, 384, 1);
  for (const [row, column] of [[0, 0], [59, 383], [17, 203]]) {
    assert.deepEqual(experts.cellAt(at, at.left + (column + 0.5) * at.cell, at.top + (row + 0.5) * at.line, 60, 384), { row, column });
  }
  assert.equal(experts.cellAt(at, at.left - 1, at.top + 1, 60, 384), null);
  assert.equal(experts.cellAt(at, at.barsAt, at.top + 1, 60, 384), null);
});

test("axis labels keep apart", () => {
  assert.equal(experts.tickStep(13, 64), 4);
  assert.equal(experts.tickStep(2, 384), 32);
});

test("columns by id, or each layer's busiest first", () => {
  const load = Uint32Array.from([1, 5, 5, 0, 2, 0, 0, 9]);
  assert.deepEqual(experts.orders(load, 2, 4, "id").map((order) => [...order]), [[0, 1, 2, 3], [0, 1, 2, 3]]);
  assert.deepEqual(experts.orders(load, 2, 4, "load").map((order) => [...order]), [[1, 2, 0, 3], [3, 0, 1, 2]]);
});

test("evenness agrees with k2lab.trace.routing", () => {
  const data = new TraceData(ABOUT), load = Uint32Array.from([5, 5, 5, 5, 8, 0, 0, 0, 0, 0, 0, 0]);
  const [even, one] = [0, 1].map((row) => data.evenness(load, row));
  assert.ok(Math.abs(even.entropy - 1) < 1e-12 && Math.abs(even.gini) < 1e-12 && even.dormant === 0);
  assert.deepEqual([Math.abs(one.entropy), one.gini, one.dormant], [0, 0.75, 0.75]);
  assert.equal(data.evenness(load, 2), null);
});

test("thinking − answer compares shares, so length does not matter", () => {
  const data = filled(), { values, most } = data.difference();
  assert.ok(Math.abs(values[0]) < 1e-6 && Math.abs(values[1] + 0.25) < 1e-6 && Math.abs(values[3] - 0.25) < 1e-6);
  assert.ok(Math.abs(most - 0.25) < 1e-6);
});

test("a token's choices are its weights", () => {
  const values = [...filled().weightsOf(1)].map((value) => Math.round(value * 10) / 10);
  assert.deepEqual(values, [0, 0.6, 0.4, 0, 0, 0.6, 0.4, 0]);
});

test("search understands experts, layers and both, and says what is wrong", () => {
  const data = filled();
  assert.deepEqual(experts.search("3", data), { expert: 3 });
  assert.deepEqual(experts.search("L2", data), { layer: 2 });
  assert.deepEqual(experts.search("layer 2 expert 1", data), { layer: 2, expert: 1 });
  assert.deepEqual(experts.search("1.3", data), { layer: 1, expert: 3 });
  assert.match(experts.search("L9", data).problem, /layers 1 to 2 have/);
  assert.match(experts.search("77", data).problem, /0 to 3/);
  assert.match(experts.search("key", data).problem, /Write/);
});

test("a cell and a layer are described in words", () => {
  const data = filled();
  assert.equal(experts.cellWords(data, 0, 1, 1), "Layer 1 · expert 1 · 67\u00a0% of tokens (4 of 6; 1.3 × even) · thinking 50\u00a0% · answer 100\u00a0% · token 1: rank 1, weight 0.60");
  assert.equal(experts.layerRows(data, data.load.all).length, 2);
  assert.match(experts.layerRows(data, data.load.all)[0][4], /^1 \(33\u00a0%\)/);
});
