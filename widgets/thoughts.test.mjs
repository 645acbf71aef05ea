import assert from "node:assert/strict";
import { test } from "node:test";

import * as thoughts from "./thoughts.js";
import { visible } from "./_token.js";

test("a call's state is in words", () => {
  assert.equal(thoughts.callState(undefined).word, "being written");
  assert.equal(thoughts.callState(undefined, true).word, "read again");
  assert.equal(thoughts.callState({ ok: null }).word, "running");
  assert.deepEqual(thoughts.callState({ ok: true, seconds: 0.0123 }), { word: "answered in 0.012 s", state: "ok" });
  assert.equal(thoughts.callState({ ok: false, seconds: 2 }).word, "failed in 2.0 s");
});

test("invisible characters are made visible", () => {
  assert.deepEqual(["", " a", "\n\n", "a\tb"].map(visible), ["∅", "␣a", "⏎⏎", "a⇥b"]);
});

test("strips: uncertain, near-tied and slow tokens stand out; given tokens have none", () => {
  const { entropy, margin, time } = thoughts.STRIPS;
  assert.ok(entropy.share(2.5) > entropy.share(0.1));
  assert.ok(margin.share(0.0001) > margin.share(0.02));
  assert.ok(time.share(0.5) > time.share(0.01));
  assert.ok(Number.isNaN(entropy.value({ column: { entropy: [NaN] } }, 0)));
});

test("a call that waits for a person says so until somebody decided", () => {
  const call = { name: "order", ok: null, approval: "waiting" };
  assert.deepEqual(thoughts.callState(call), { word: "waits for you", state: "open" });
  assert.equal(thoughts.callState({ ...call, approval: "allowed" }).word, "running");
});

test("what had not ended with its run is unfinished", () => {
  const call = { name: "order", ok: null, approval: "waiting" };
  for (const one of [call, { ...call, approval: null }, undefined]) assert.equal(thoughts.callState(one, false, true).word, "unfinished");
  assert.equal(thoughts.callState({ ok: true, seconds: 1 }, false, true).state, "ok");
});
