import assert from "node:assert/strict";
import { test } from "node:test";

import * as attention from "./attention.js";

const ARRAYS = { weights: new Float32Array([0.5, 0.25, 0.25, 0, 0, 1]), rope: new Float32Array([0.2, 0.8]), norm: new Float32Array([1, 2, 3]) };

test("a head's row, and the mean of all", () => {
  assert.deepEqual([...attention.reads(ARRAYS, 3, 1)], [0, 0, 1]);
  assert.deepEqual([...attention.reads(ARRAYS, 3, -1)], [0.25, 0.125, 0.625]);
});

test("weights may come as half precision", () => {
  const raw = { ...ARRAYS, weights: new Uint16Array([0x3800, 0x3400, 0x3400, 0, 0, 0x3c00]) };
  assert.deepEqual([...attention.reads(raw, 3, 0)], [0.5, 0.25, 0.25]);
});

test("what is read most comes first, and nothing unread is named", () => {
  assert.deepEqual(attention.mostRead(new Float32Array([0, 0.75, 0.25])).map((one) => one.i), [1, 2]);
  assert.equal(attention.spread(new Float32Array([0.1, 0.6, 0.3])), 1);
  assert.equal(attention.spread(new Float32Array([0.25, 0.25, 0.25, 0.25])), 2);
});

test("many sources share columns, and peaks stay", () => {
  const values = new Float32Array(1000);
  values[777] = 1;
  const columns = attention.binned(values, 100);
  assert.deepEqual([columns.length, columns[77], columns.indexOf(1)], [100, 1, 77]);
  assert.equal(attention.binned(values, 2000), values);
});

test("heads and sources are found again, at K2's 64 heads and K2-nano's 6", () => {
  for (const width of [480, 1100]) for (const heads of [6, 64]) {
    const at = attention.place(width, heads), x = at.left + (10.5 / 200) * at.room;
    assert.deepEqual(attention.headAt(at, x, at.top + (heads - 0.5) * at.line, 200), { head: heads - 1, source: 10 });
    assert.deepEqual(attention.headAt(at, x, at.normY + 2, 200), { head: -1, source: 10 });
    assert.equal(attention.headAt(at, at.left - 5, at.top + 5, 200), null);
    assert.ok(at.left + at.room + at.side <= width && at.height < 520);
  }
});

test("the meter compares with keys and values of all heads, or says nothing", () => {
  const sizes = attention.meter({ latent_bytes: 70_272, multi_head_bytes: 2_498_560 });
  assert.deepEqual(sizes.words, ["latent cache: 70 kB per token", "keys and values of all heads: 2.5 MB, 35.6 × as much"]);
  assert.equal(attention.meter({}), null);
});
