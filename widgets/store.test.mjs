import assert from "node:assert/strict";
import { test } from "node:test";

import { ABOUT, fakeModel, frame, joined } from "./_fake.test.mjs";
import { TraceData } from "./_columns.js";
import widget, { Store } from "./store.js";

test("frames in order fill the columns", () => {
  const data = new TraceData(ABOUT);
  assert.ok(data.accept(...frame(0, 3)) && data.accept(...frame(3, 300)));
  assert.deepEqual([data.n, data.m, data.texts.length], [303, 303, 303]);
  assert.deepEqual(data.top(302), [{ id: 302, text: "t302", p: 0.5 }, { id: 99, text: "?", p: 0.25 }]);
  assert.deepEqual(data.choices(5, 1), [{ expert: 1, weight: 0.6 }, { expert: 2, weight: 0.4 }]);
  assert.equal(data.margin(302), 0.25);
});

test("an overlapping frame adds only what is new", () => {
  const data = new TraceData(ABOUT);
  data.accept(...frame(0, 5));
  data.accept(...frame(2, 6));
  data.accept(...frame(0, 4));
  assert.deepEqual([data.n, data.m, data.texts.length, data.topTexts.length], [8, 8, 8, 16]);
  assert.equal(data.top(7)[0].text, "t7");
  assert.equal(data.load.all.reduce((a, b) => a + b), 8 * 4);
});

test("a gap is refused, and the store asks for what is missing", () => {
  const model = fakeModel(), store = new Store(model);
  store.receive(...frame(0, 2));
  store.receive(...frame(5, 1));
  assert.equal(store.data.n, 2);
  assert.deepEqual(model.sent, [{ type: "resync", epoch: 1, from: 2, routed: 2, moved: 0 }]);
});

test("load is counted by kind, users by expert", () => {
  const data = new TraceData(ABOUT);
  data.accept(...frame(0, 4, 3));
  data.accept(...frame(4, 2, 4));
  assert.deepEqual([data.counted.thinking, data.counted.answer], [4, 2]);
  assert.deepEqual([...data.load.answer], [1, 2, 1, 0, 1, 2, 1, 0]);
  assert.deepEqual([...data.users(0, 0)], [1, 0, 0, 1, 1, 0]);
  assert.deepEqual([...data.users(-1, 0)], [0, 0, 0, 0, 0, 0]);
});

test("initialize registers, asks for everything, and keeps one store for two models", () => {
  const first = fakeModel({ store_id: "twice" }), second = fakeModel({ store_id: "twice" });
  widget.initialize({ model: first });
  widget.initialize({ model: second });
  assert.equal(first.sent[0].type, "resync");
  assert.equal(second.sent[0].type, "resync");
  const store = globalThis[Symbol.for("k2lab")].stores.get("twice");
  second.emit("msg:custom", ...frame(0, 2));
  first.emit("msg:custom", ...frame(2, 2));
  assert.equal(store.data.n, 4);
});

test("another run begins anew; late frames of the old one are dropped", () => {
  const model = fakeModel({ store_id: "epochs" });
  widget.initialize({ model });
  const store = globalThis[Symbol.for("k2lab")].stores.get("epochs");
  store.receive(...frame(0, 3));
  model.values.about = { ...ABOUT, experts: 8 };
  model.set("epoch", 2);
  assert.deepEqual([store.data.n, store.data.experts], [0, 8]);
  store.receive(...frame(3, 3));
  assert.equal(store.data.n, 0);
});

test("hover is seen by every view, once per change, and goes back to what is pinned", async () => {
  const model = fakeModel({ store_id: "hover" });
  widget.initialize({ model });
  const store = globalThis[Symbol.for("k2lab")].stores.get("hover");
  let told = 0;
  store.listen(() => told++, new AbortController().signal);
  store.pin({ layer: 1, expert: 3 });
  store.hover({ layer: 2, expert: 0 });
  assert.deepEqual([model.get("layer"), model.get("expert")], [2, 0]);
  await Promise.resolve();
  assert.equal(told, 1);
  store.leave();
  assert.deepEqual([model.get("layer"), model.get("expert"), model.get("playhead")], [1, 3, -1]);
  store.pin({ layer: 1, expert: 3 });
  assert.deepEqual(model.get("pin"), [-1, -1, -1]);
});

test("a damaged frame and a refused message are told, not thrown", () => {
  const store = new Store(fakeModel());
  const [header, buffers] = frame(0, 2);
  store.receive(header, buffers.slice(1));
  assert.match(store.notice, /Damaged/);
  store.receive({ type: "error", found: "A step of 'x'.", expected: "token or layer." });
  assert.match(store.notice, /A step of 'x'/);
  store.receive(null);
});

test("the load of a range is the same from snapshots as counted", () => {
  const data = new TraceData(ABOUT);
  for (let at = 0; at < 3000; at += 250) data.accept(...frame(at, 250, at % 500 ? 3 : 4));
  assert.equal(data.snapshots.length, 5);
  for (const [a, b] of [[0, 3000], [10, 2990], [511, 1025], [700, 800], [1023, 1024], [5, 5], [2999, 9000]]) {
    const counted = data.count(new Uint32Array(data.load.all.length), a, Math.max(a, Math.min(b, 3000)));
    assert.deepEqual([...data.loadOf(a, b)], [...counted], `${a} … ${b}`);
  }
  assert.deepEqual([data.counted.all, data.counted.thinking, data.counted.answer], [3000, 1500, 1500]);
});

test("a detail is asked for once, kept, and asked for again when what is missing may have come", async () => {
  const model = fakeModel({ status: { state: "running" } }), store = new Store(model);
  assert.equal(store.detail("route", 3), null);
  assert.equal(store.detail("route", 4), null); // the pointer went on: only this one is asked for
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.deepEqual(model.sent, [{ type: "detail", key: "route:4:-1", what: "route", token: 4, layer: -1 }]);
  store.receive({ type: "detail", key: "route:4:-1", epoch: 1, arrays: "scores:float32:2", provenance: "derived", note: "" }, [new Float32Array([1, 2]).buffer]);
  assert.deepEqual([...store.detail("route", 4).arrays.scores], [1, 2]);
  store.receive({ type: "detail", key: "route:5:-1", epoch: 1, arrays: "", provenance: "missing", note: "busy" }, []);
  assert.equal(store.detail("route", 5).note, "busy");
  assert.equal(store.wanted, null);
  model.values.status = { state: "done" };
  store.detail("route", 5);
  assert.equal(store.wanted.key, "route:5:-1");
});

test("what is missing is asked for once more after a while: a branch may have had the engine", (context) => {
  const model = fakeModel({ status: { state: "done" } }), store = new Store(model);
  const busy = () => store.receive({ type: "detail", key: "route:5:-1", epoch: 1, arrays: "", provenance: "missing", note: "busy" }, []);
  let now = 0;
  context.mock.method(Date, "now", () => now);
  busy();
  now = 2000;
  store.detail("route", 5);
  assert.equal(store.wanted, null);
  now = 4000;
  assert.equal(store.detail("route", 5).note, "busy"); // shown till then
  assert.equal(store.wanted.key, "route:5:-1");
});

test("details of an earlier run are not taken", () => {
  const store = new Store(fakeModel());
  store.receive({ type: "detail", key: "route:4:-1", epoch: 0, arrays: "", provenance: "missing", note: "" }, []);
  assert.equal(store.details.size, 0);
});

test("a frozen view takes nothing in, and everything afterwards", () => {
  const store = new Store(fakeModel());
  store.receive(...frame(0, 2));
  store.freeze(true);
  store.receive(...frame(2, 3));
  assert.equal(store.data.n, 2);
  store.freeze(false);
  assert.equal(store.data.n, 5);
});

test("what was brought is kept once, however frames overlap, and a gap in it is refused", () => {
  const data = new TraceData(ABOUT), [header, buffers] = frame(0, 2);
  const moves = (start) => ({ move_start: Uint32Array.of(start), move_tokens: Uint32Array.of(1), move_stall: Float32Array.of(0.5), move_hits: Uint32Array.of(3), move_misses: Uint32Array.of(1), move_bytes: Float32Array.of(4096) });
  const types = { move_start: "uint32", move_tokens: "uint32", move_stall: "float32", move_hits: "uint32", move_misses: "uint32", move_bytes: "float32" };
  const send = (moved, start) => {
    const arrays = moves(start), layout = Object.entries(arrays).map(([name, values]) => `${name}:${types[name]}:${values.length}`).join(" ");
    return data.accept({ ...header, moved, links: ["disk→host"], arrays: `${header.arrays} ${layout}` }, joined({ known: new Uint8Array(buffers[0]), ...arrays }));
  };
  assert.equal(send(1, 0), false);
  assert.ok(send(0, 0) && send(0, 0) && send(1, 1));
  assert.deepEqual(data.moves.map((move) => [move.start, move.bytes]), [[0, { "disk→host": 4096 }], [1, { "disk→host": 4096 }]]);
});

test("the load of a kind is that of its tokens wherever they stand", () => {
  const data = new TraceData(ABOUT);
  for (const [start, count, kind] of [[0, 2, 3], [2, 1, 4], [3, 2, 3]]) data.accept(...frame(start, count, kind));
  const { load, tokens } = data.loadOfKind(3);
  assert.equal(tokens, 4);
  assert.deepEqual(load, data.loadOf(0, 5).map((value, i) => value - data.loadOf(2, 3)[i]));
});

test("a run that begins as another goes on on its own, and counts what it shares", () => {
  const [whole, twin, trunk] = [0, 1, 2].map(() => new TraceData(ABOUT));
  trunk.accept(...frame(0, 700));
  whole.accept(...frame(0, 600));
  twin.share(trunk, { tokens: 600, routed: 600, moved: 0, calls: 0 });
  for (const data of [whole, twin]) data.accept(...frame(600, 300, 4));
  assert.deepEqual([twin.n, twin.m, twin.counted], [900, 900, whole.counted]);
  assert.deepEqual(twin.texts, whole.texts);
  for (const name of ["ids", "kinds", "topEnd", "topP", "experts", "margin"]) assert.deepEqual(twin.column[name].subarray(0, 900), whole.column[name].subarray(0, 900), name);
  assert.deepEqual([twin.load, twin.loadOf(500, 700), twin.top(650)], [whole.load, whole.loadOf(500, 700), whole.top(650)]);
  assert.equal(trunk.n, 700, "the other run is as it was");
});
