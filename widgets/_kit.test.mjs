import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import * as kit from "./_kit.js";

const folder = new URL(".", import.meta.url);
const sources = readdirSync(folder).filter((name) => name.endsWith(".js"));

test("model text can only become text: nothing parses markup", () => {
  for (const name of sources) {
    const text = readFileSync(new URL(name, folder), "utf8");
    for (const forbidden of ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "createContextualFragment", "eval(", "new Function"]) {
      assert.ok(!text.includes(forbidden), `${name} has ${forbidden}`);
    }
  }
});

test("nothing is fetched from anywhere", () => {
  for (const name of sources) assert.doesNotMatch(readFileSync(new URL(name, folder), "utf8"), /https?:|fetch\(|import\(/, name);
});

test("a widget joined with the kit has no name twice", () => {
  const names = (text) => [...text.matchAll(/^(?:export )?(?:async )?(?:function|class|const|let) (\w+)/gm)].map((match) => match[1]);
  const own = names(readFileSync(new URL("_kit.js", folder), "utf8"));
  for (const name of sources.filter((name) => name !== "_kit.js")) {
    const both = names(readFileSync(new URL(name, folder), "utf8")).filter((one) => own.includes(one));
    assert.deepEqual(both, [], name);
  }
});

test("half precision decodes numbers, small numbers, infinities", () => {
  assert.equal(kit.half(0x3c00), 1);
  assert.equal(kit.half(0xc000), -2);
  assert.equal(kit.half(0x0001), 2 ** -24);
  assert.equal(kit.half(0x7c00), Infinity);
  assert.ok(Number.isNaN(kit.half(0x7e00)));
});

test("unpack copies from views at odd offsets, and refuses damaged frames", () => {
  const bytes = new Uint8Array([9, 1, 0, 2, 0]);
  const { ids } = kit.unpack("ids:uint16:2", [new DataView(bytes.buffer, 1, 4)]);
  assert.deepEqual([...ids], [1, 2]);
  assert.throws(() => kit.unpack("ids:uint16:3", [new DataView(bytes.buffer, 1, 4)]), /Damaged/);
  assert.throws(() => kit.unpack("ids:object:1", [bytes.buffer]), /Damaged/);
});

test("ramps run from their first to their last colour", () => {
  assert.equal(kit.css(kit.ramp("cividis"), 0), "rgba(0,34,78,1.00)");
  assert.equal(kit.css(kit.ramp("cividis"), 9), "rgba(254,232,56,1.00)");
  const [left, middle, right] = [0, 0.5, 1].map((value) => kit.css(kit.ramp("diverging"), value));
  assert.match(left, /^rgba\(10,74,144/); // blue
  assert.match(middle, /^rgba\(24[34],24[34],2[34]\d/); // neutral
  assert.match(right, /^rgba\(152,63,0/); // orange
});

test("numbers are written as people read them", () => {
  assert.deepEqual([0, 0.004, 0.256, 1].map(kit.percent), ["0 %", "0.4 %", "26 %", "100 %"]);
  assert.equal(kit.percent(NaN), "–");
  assert.equal(kit.decimal(1.005, 1), "1.0");
  assert.ok(kit.isDark("rgb(17, 17, 17)") && !kit.isDark("rgb(255, 255, 255)"));
});

test("status line says state, reason and speed", () => {
  const parts = kit.statusParts({ state: "done", reason: "answer", speed: 7.25, engine: "torch", capture: "route" }, { model: "K2-nano" }, 1234);
  assert.deepEqual(parts, { state: "done: answered", facts: "K2-nano · 1,234 tokens · 7.3 tokens/s · torch · capture: route" });
  assert.equal(kit.statusParts({}, {}, 0).state, "waiting");
});

test("a view that comes before its store waits for it", async () => {
  const store = {}, waiting = kit.whenStore("late");
  kit.register("late", store);
  assert.equal(await waiting, store);
  assert.equal(await kit.whenStore("late"), store);
});

test("debounce waits for quiet, but not for ever", async () => {
  let calls = 0;
  const act = kit.debounce(() => calls++, 20, 60);
  const until = Date.now() + 150;
  while (Date.now() < until) { act(); await new Promise((resolve) => setTimeout(resolve, 5)); }
  assert.ok(calls >= 1 && calls <= 4, `${calls} calls`);
});
