import assert from "node:assert/strict";
import { test } from "node:test";

import * as text from "./_blocks.js";

const [M, S, U, T, A, C, R] = [0, 1, 2, 3, 4, 5, 6];

/** Data with one token per [kind, text]. */
function dataOf(tokens) {
  return { n: tokens.length, m: 0, texts: tokens.map(([, text]) => text), column: { kinds: Uint8Array.from(tokens, ([kind]) => kind) } };
}

const RUN = [[M, "<|im_user|>"], [U, "hi"], [M, "<|im_end|>"], [M, "<think>"], [T, "hm"], [T, " so"], [M, "</think>"], [M, "<|tool_call_begin|>"], [C, "f:0"],
  [M, "<|tool_call_argument_begin|>"], [C, "{}"], [M, "<|tool_call_end|>"], [M, "<|tool_call_begin|>"], [C, "g:1"], [M, "<|tool_call_end|>"], [R, "3"], [A, "ok"], [M, "<|im_end|>"]];

test("markers belong to what follows them; each call is its own group", () => {
  const groups = text.extendGroups(dataOf(RUN), []);
  assert.deepEqual(groups.map((group) => [group.kind, group.start, group.body, group.stop]),
    [[U, 0, 1, 2], [T, 2, 4, 6], [C, 6, 8, 11], [C, 11, 13, 14], [R, 14, 15, 16], [A, 16, 16, 17], [M, 17, 18, 18]]);
});

test("groups found step by step are those found at once", () => {
  const whole = text.extendGroups(dataOf(RUN), []), growing = [];
  for (let n = 1; n <= RUN.length; n++) text.extendGroups(dataOf(RUN.slice(0, n)), growing);
  assert.deepEqual(growing, whole);
});

test("blocks cover their group, end at line ends, and are never too long", () => {
  const texts = Array.from({ length: 2000 }, (_, i) => (i < 700 && i % 70 === 69 ? ".\n" : " w"));
  const blocks = text.cutBlocks(texts, { kind: T, start: 0, body: 0, stop: 2000 }, 7);
  assert.deepEqual([blocks[0].first, blocks[1].first, blocks.at(-1).last, blocks.at(-1).stop], [true, false, true, 2000]);
  blocks.forEach((block, i) => assert.ok(i === 0 || block.start === blocks[i - 1].stop));
  assert.ok(blocks.every((block) => block.stop - block.start <= 480));
  assert.equal(blocks[0].stop, 70);
});

test("offsets and look-up agree", () => {
  const sums = text.offsets([10, 20, 30]);
  assert.deepEqual([...sums], [0, 10, 30, 60]);
  assert.deepEqual([0, 9, 10, 59, 1000].map((y) => text.blockAt(sums, y)), [0, 0, 1, 2, 2]);
  assert.equal(text.blockAt(text.offsets([]), 5), 0);
  assert.equal(text.blockOf([{ start: 0 }, { start: 5 }, { start: 9 }], 8), 1);
});

test("a hundred thousand tokens are grouped and cut quickly", () => {
  const n = 100_000, data = { n, texts: Array.from({ length: n }, (_, i) => (i % 40 ? " word" : ".\n")), column: { kinds: new Uint8Array(n).fill(T) } };
  const begin = performance.now(), groups = text.extendGroups(data, []), blocks = text.cutBlocks(data.texts, groups[0], 0);
  assert.ok(performance.now() - begin < 500);
  assert.ok(blocks.length < 2000);
});

test("a call is found by the token with which it ended", () => {
  const groups = text.extendGroups(dataOf(RUN), []), calls = [{ name: "f", index: 11 }, { name: "g", index: 14 }];
  assert.equal(text.callOf(calls, groups, 2).name, "f");
  assert.equal(text.callOf(calls, groups, 3).name, "g");
  assert.equal(text.callOf([], groups, 2), undefined);
});
