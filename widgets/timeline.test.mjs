import assert from "node:assert/strict";
import { test } from "node:test";

import { ABOUT, frame } from "./_fake.test.mjs";
import { TraceData } from "./_columns.js";
import * as timeline from "./timeline.js";

/** Prompt of 3, thinking of 4, call of 2 that fails, call of 2 that is answered, answer of 2. */
function filled() {
  const data = new TraceData(ABOUT);
  for (const [start, count, kind] of [[0, 3, 2], [3, 4, 3], [7, 2, 5], [9, 2, 5], [11, 2, 4]]) data.accept(...frame(start, count, kind));
  data.column.seconds.fill(NaN, 0, 3);
  for (let i = 3; i < 13; i++) data.column.seconds[i] = (i - 2) / 10;
  data.calls = [
    { place: 0, name: "look", arguments: "{}", index: 8, content: "no such box", ok: false, seconds: 0.25 },
    { place: 1, name: "look", arguments: "{\"thing\":\"box\"}", index: 10, content: "a key", ok: true, seconds: 0.5 },
  ];
  return data;
}

test("given tokens take no time of their own; the rest lasts until its time", () => {
  const edges = timeline.times(filled());
  assert.deepEqual([...edges.slice(0, 5)].map((x) => +x.toFixed(2)), [0, 0, 0, 0, 0.1]);
  assert.equal(+edges[13].toFixed(2), 1);
});

test("parts are cut where the kind changes", () => {
  assert.deepEqual(timeline.spans(filled()).map((part) => [part.kind, part.start, part.stop]), [[2, 0, 3], [3, 3, 7], [5, 7, 11], [4, 11, 13]]);
});

test("a call after a failed one of the same tool is a retry, and calls know their tokens", () => {
  const data = filled(), calls = timeline.asked(data, timeline.times(data), timeline.spans(data));
  assert.deepEqual(calls.map((one) => [one.start, one.stop, one.retry]), [[7, 9, 0], [9, 11, 1]]);
  assert.equal(timeline.callWords(calls[0]), "look({}) failed in 0.250 s: no such box");
  assert.match(timeline.callWords(calls[1]), /answered in 0\.500 s: a key · retry 1$/);
  assert.ok(Math.abs(calls[0].to - calls[0].from - 0.25) < 1e-6);
});

test("a call that is still running says so", () => {
  const data = filled();
  data.calls = [{ name: "look", arguments: "x".repeat(500), index: 8, content: null, ok: null, seconds: null }];
  const [one] = timeline.asked(data, timeline.times(data), timeline.spans(data));
  assert.match(timeline.callWords(one), /running$/);
  assert.ok(timeline.callWords(one).length < 140);
});

test("positions and tokens are each other's inverse on both axes, zoomed or not", () => {
  const data = filled(), edges = timeline.times(data), at = timeline.place(900);
  for (const kind of ["tokens", "time"]) for (const zoom of [[0, 1], [0.3, 0.9]]) {
    const axis = timeline.scale(kind, data, edges, zoom, at);
    for (const i of [5, 6, 9]) assert.equal(axis.token((axis.tokenX(i) + axis.tokenX(i + 1)) / 2), i, `${kind} ${zoom}`);
  }
});

test("zooming stays inside and keeps its focus", () => {
  assert.deepEqual(timeline.zoomed([0, 1], 2, 0.5), [0, 1]);
  assert.deepEqual(timeline.zoomed([0, 1], 0.5, 0), [0, 0.5]);
  const [from, to] = timeline.zoomed([0.4, 0.6], 0.5, 0.5);
  assert.ok(Math.abs(from - 0.45) < 1e-9 && Math.abs(to - 0.55) < 1e-9);
});

test("axis steps are round, bytes are readable", () => {
  assert.deepEqual([203, 32768, 7.5].map((span) => timeline.axisStep(span, 10)), [50, 5000, 1]);
  assert.deepEqual([500, 2048, 70 * 1024 * 1024].map(timeline.bytesWords), ["500 B", "2.0 KiB", "70 MiB"]);
});

test("what an offloading engine brought is shared out over its tokens, and has a lane and words", () => {
  const data = filled();
  assert.equal(timeline.brought(data), null);
  assert.equal(timeline.place(900).lanes.experts, undefined);
  data.moves = [{ start: 0, tokens: 4, stall: 0.4, hits: 8, misses: 8, bytes: { disk: 4096, host: 4096 } }, { start: 4, tokens: 1, stall: 0, hits: 2, misses: 0, bytes: {} }];
  const moved = timeline.brought(data);
  assert.deepEqual([moved.bytes[0], moved.hits[3], moved.misses[3], moved.bytes[4]], [2048, 2, 2, 0]);
  assert.ok(Math.abs(moved.wait[1] - 0.1) < 1e-6 && timeline.place(900, true).lanes.experts.height > 0);
  assert.equal(timeline.movedWords(moved, 0, 5), "waited 400.0 ms for experts, 8.0 KiB brought, 56 % were there");
});

test("the table has every part and every call in order", () => {
  const data = filled(), edges = timeline.times(data), parts = timeline.spans(data);
  const { rows } = timeline.laneRows({ edges, parts, calls: timeline.asked(data, edges, parts), moved: null });
  assert.deepEqual(rows.map((row) => row.slice(0, 2)), [["0–2", "User"], ["3–6", "Thinking"], ["7–10", "Tool call"], ["7–8", "call of a tool"], ["9–10", "call of a tool"], ["11–12", "Answer"]]);
  assert.match(rows[4][4], /a key · retry 1$/);
});

test("a call that waits for a person says so, until somebody decides", () => {
  const call = { name: "pay", arguments: "{}", index: 8, content: null, ok: null, seconds: null, approval: "waiting" };
  assert.deepEqual([call, { ...call, approval: "allowed" }, { ...call, ok: true }, { ...call, approval: "refused", ok: false }].map((one) => timeline.stateOf(one)), ["waits for approval", "running", "answered", "failed"]);
  assert.equal(timeline.stateOf(call, true), "unfinished"); // the run has ended without it
  const data = filled();
  data.calls = [call];
  assert.match(timeline.callWords(timeline.asked(data, timeline.times(data), timeline.spans(data))[0]), /^pay\({}\) waits for approval$/);
});

test("parts are cut where a context begins, and know whose they are", () => {
  const data = filled(), contexts = [[0, "buyer"], [5, "seller"]], parts = timeline.spans(data, contexts);
  assert.deepEqual(parts.map((part) => [part.start, part.stop, part.agent]), [[0, 3, "buyer"], [3, 5, "buyer"], [5, 7, "seller"], [7, 11, "seller"], [11, 13, "seller"]]);
  const calls = timeline.asked(data, timeline.times(data), parts);
  assert.match(timeline.callWords(calls[0]), /^seller: look/);
  assert.match(timeline.laneRows({ edges: timeline.times(data), parts, calls, moved: null }).rows[0][1], /^buyer: User$/);
});

test("each agent has a lane of its own, above the others and apart", () => {
  const { lanes, height } = timeline.place(900, false, ["buyer", "seller"]);
  assert.deepEqual(Object.keys(lanes), ["text buyer", "text seller", "tools", "engine", "memory"]);
  const all = Object.values(lanes);
  for (let k = 1; k < all.length; k++) assert.ok(all[k].y >= all[k - 1].y + all[k - 1].height);
  assert.ok(height > timeline.place(900).height);
});

test("a compacted context is remembered from its beginning on", () => {
  const contexts = [[0, ""], [8, ""]];
  assert.deepEqual([0, 1, 8, 9, 13].map((i) => timeline.remembered(contexts, i)), [0, 1, 8, 1, 5]);
});

test("a call covers its own section, not the calls that were read again before it", () => {
  const data = new TraceData(ABOUT), part = (start, count, kind) => data.accept(...frame(start, count, kind));
  [[0, 4, 5], [4, 1, 0], [5, 3, 6], [8, 1, 0], [9, 2, 5], [11, 1, 0], [12, 3, 5], [15, 1, 0]].forEach((one) => part(...one)); // read again; id, marker, arguments, end
  data.calls = [{ name: "look", arguments: "{}", index: 15, content: "", ok: true, seconds: 0 }];
  const [one] = timeline.asked(data, timeline.times(data), timeline.spans(data));
  assert.deepEqual([one.start, one.stop], [9, 16]);
});
