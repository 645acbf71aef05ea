import assert from "node:assert/strict";
import { test } from "node:test";

import { ABOUT, frame } from "./_fake.test.mjs";
import * as compare from "./compare.js";
import { TraceData } from "./_columns.js";

function pair() {
  const [a, b] = [new TraceData(ABOUT), new TraceData(ABOUT)];
  a.accept(...frame(0, 8));
  b.accept(...frame(0, 6));
  b.column.ids[4] = 77; // parts here
  b.column.entropy.set([0.5, 0.5, 0.5, 0.5, 1.5, NaN]);
  b.column.experts.set([3, 2], 4 * 4); // token 4, row 0: 0, 1 → 3, 2
  return [a, b];
}

test("runs part at the first token that differs, or where one ends", () => {
  const [a, b] = pair();
  assert.equal(compare.parting(a, b), 4);
  assert.equal(compare.parting(a, a), 8);
});

test("agreement is the mean Jaccard index of the chosen experts by layer", () => {
  const [a, b] = pair();
  assert.deepEqual([...compare.agreement(a, b, 4, 99)], [0.5, 1]); // token 4: 0, token 5: 1
  assert.deepEqual([...compare.agreement(a, b, 0, 4)], [1, 1]);
  assert.ok(compare.agreement(a, b, 7, 99).every(Number.isNaN));
});

test("runs of models of different size have no agreement", () => {
  const [a] = pair(), other = new TraceData({ ...ABOUT, layers: 9 });
  assert.ok(compare.agreement(a, other, 0, 9).every(Number.isNaN));
});

test("entropy differs by b − a, and given tokens have none", () => {
  const [a, b] = pair(), found = compare.entropyDifference(a, b, 4);
  assert.deepEqual([found[0], Number.isNaN(found[1]), found.length], [1, true, 2]);
  assert.equal(compare.mean(found), 1);
  assert.ok(Number.isNaN(compare.mean(new Float32Array(0))));
});

test("the tree lists parents before children, and a loop does not hang it", () => {
  const runs = [{ id: "c", name: "run.1.1", parent: "b" }, { id: "a", name: "run", parent: "" }, { id: "b", name: "run.1", parent: "a" }];
  assert.deepEqual(compare.branches(runs).map(({ run, depth }) => [run.name, depth]), [["run", 0], ["run.1", 1], ["run.1.1", 2]]);
  assert.deepEqual(compare.branches([{ id: "x", name: "x", parent: "y" }, { id: "y", name: "y", parent: "x" }]), []);
});

test("a branch says where it left and what was edited", () => {
  assert.equal(compare.branchWords({ at: 17, given: " Wait", edits: [{ do: "zero", layer: 3, experts: [5] }] }), 'from token 17 with " Wait" · L3: zero expert 5');
  assert.equal(compare.branchWords({ at: -1, edits: [] }), "the question");
});

test("layers and tokens are found again", () => {
  for (const width of [420, 1100]) for (const rows of [5, 60]) {
    const at = compare.place(width, rows);
    assert.deepEqual(compare.spotAt(at, at.left + 2, at.top + (rows - 0.5) * at.line, 50), { row: rows - 1 });
    assert.deepEqual(compare.spotAt(at, at.plotX + at.plotWidth - 1, at.top + 5, 50), { offset: 49 });
    assert.equal(compare.spotAt(at, 2, 2, 50), null);
    assert.ok(at.plotX + at.plotWidth <= width);
  }
});
