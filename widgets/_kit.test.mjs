import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import * as colour from "./_colour.js";
import * as head from "./_head.js";
import * as shared from "./_kit.js";
import * as numbers from "./_numbers.js";
import * as panel from "./_panel.js";
import * as pens from "./_pen.js";
import * as trays from "./_tray.js";

const kit = { ...shared, ...numbers, ...colour, ...head };

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
  for (const name of sources) assert.doesNotMatch(readFileSync(new URL(name, folder), "utf8"), /https?:(?!..www.w3.org)|[^.]fetch\(|import\(/, name);
});

const names = (file) => [...readFileSync(new URL(file, folder), "utf8").matchAll(/^(?:export )?(?:async )?(?:function|class|const|let) (\w+)/gm)].map((match) => match[1]);

test("a widget joined with what it imports has no name twice", () => {
  const common = sources.filter((name) => name.startsWith("_")), own = common.flatMap(names);
  assert.deepEqual(own.filter((name, i) => own.indexOf(name) !== i), []);
  for (const name of sources.filter((one) => !common.includes(one))) {
    assert.deepEqual(names(name).filter((one) => own.includes(one)), [], name);
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
  const bytes = new Uint8Array([9, 7, 1, 0, 2, 0]), view = new DataView(bytes.buffer, 1, 5);
  const { kinds, ids } = kit.unpack("kinds:uint8:1 ids:uint16:2 none:uint32:0", [view]);
  assert.deepEqual([[...kinds], [...ids]], [[7], [1, 2]]);
  for (const layout of ["kinds:uint8:1 ids:uint16:3", "ids:uint16:2", "kinds:uint8:1"]) assert.throws(() => kit.unpack(layout, [view]), /Damaged/, layout);
  assert.throws(() => kit.unpack("ids:uint16:2", []), /Damaged/);
  assert.deepEqual(kit.unpack("", []), {});
  assert.throws(() => kit.unpack("ids:object:1", [bytes.buffer]), /Damaged/);
});

test("ramps run from their first to their last colour", () => {
  assert.equal(kit.css(kit.ramp("cividis"), 0), "rgba(0,34,78,1.00)");
  assert.equal(kit.css(kit.ramp("cividis"), 9), "rgba(254,232,56,1.00)");
  const [onLight, onDark] = [kit.rampOn("cividis", false), kit.rampOn("cividis", true)]; // high is far from the background
  assert.deepEqual([kit.css(onLight, 1), kit.css(onDark, 1)], [kit.css(kit.ramp("cividis"), 0), kit.css(kit.ramp("cividis"), 1)]);
  assert.equal(kit.css(kit.ramp("cividis"), 0), "rgba(0,34,78,1.00)", "the ramp itself stays as it is");
  const [left, middle, right] = [0, 0.5, 1].map((value) => kit.css(kit.ramp("diverging"), value));
  assert.match(left, /^rgba\(10,74,144/); // blue
  assert.match(middle, /^rgba\(24[34],24[34],2[34]\d/); // neutral
  assert.match(right, /^rgba\(152,63,0/); // orange
});

test("numbers are written as people read them", () => {
  assert.deepEqual([0, 0.004, 0.256, 1].map(kit.percent), ["0\u00a0%", "0.4\u00a0%", "26\u00a0%", "100\u00a0%"]);
  assert.equal(kit.percent(NaN), "–");
  assert.deepEqual([0, 0.0004, 0.9996, 1].map(kit.percent), ["0\u00a0%", "<\u00a00.1\u00a0%", "99.9\u00a0%", "100\u00a0%"]);
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
  while (!calls) await new Promise((resolve) => setTimeout(resolve, 20)); // a busy machine may be late
  assert.ok(calls <= 5, `${calls} calls`);
});

test("SVG is written with every text and attribute escaped", () => {
  const pen = pens.svgPen(100, 50);
  pen.fillStyle = '"><script>alert(1)</script>';
  pen.fillText("<img src=x onerror=alert(1)> & \u0000", 1, 2);
  pen.fillRect(0, 0, 10, 10);
  const text = pen.text();
  assert.match(text, /&lt;img src=x onerror=alert\(1\)&gt; &amp; □/);
  assert.doesNotMatch(text, /<script|<img/);
  assert.ok(text.startsWith("<svg ") && text.trimEnd().endsWith("</svg>"));
});

test("edits are the kernel's JSON, add up, and can be said and written as code", () => {
  const zero = trays.editOf("zero", 3, 17), raise = trays.editOf("raise", 3, 17, { segment: "thinking" }), lower = trays.editOf("lower", 3, 17, { segment: "thinking" });
  assert.deepEqual(zero, { do: "zero", layer: 3, experts: [17] });
  assert.deepEqual(raise, { do: "bias", layer: 3, experts: [17], amount: 0.05, segment: "thinking" });
  let edits = trays.withEdit([zero], zero);
  assert.equal(edits.length, 1);
  edits = trays.withEdit(trays.withEdit(edits, raise), raise);
  assert.equal(edits[1].amount, 0.1);
  assert.deepEqual(trays.withEdit(trays.withEdit(edits, lower), lower), [zero]);
  assert.deepEqual(edits.map(trays.editWords), ["L3: zero expert 17", "L3: bias +0.1 on expert 17, thinking only"]);
  assert.equal(trays.editWords({ do: "zero_heads", layer: 2, heads: [1], tokens: [4, 9] }), "L2: zero head 1, tokens 4 to 8");
  assert.equal(trays.editCode([], "run\n"), "");
  const cell = trays.editCode(edits, "lab = k2lab.load()\nrun = lab.run('?').wait()\nbranch = run.branch(3).wait()\nbranch\n");
  assert.match(cell, /branch\(3\)\.wait\(\)\nedits = \[\n {4}\{"do":"zero","layer":3,"experts":\[17\]\},\n[^]*print\(branch\.experiment\(edits\)\)/);
  assert.match(cell, /treated = branch\.branch\(branch\.turns\[0\], edits=\[\*branch\.recipe\.edits, \*edits\]\)\.wait\(\)\nlab\.show\(treated\)\n$/);
});

test("steps within a row stay within it", () => {
  assert.deepEqual(["ArrowLeft", "ArrowRight", "Home", "End", "PageDown", "x"].map((key) => panel.stepOf(key, 0, 5)), [0, 1, 0, 5, 5, null]);
});

test("an experiment is a table of readable numbers", () => {
  const effect = { measure: "kl", treatment: 3.04e-8, control: 0.01234, difference: -0.0123, low: -0.02, high: 0, p: 0.846 };
  assert.deepEqual(trays.reportRows({ effects: [effect] }), [["KL, nats", "3.0e-8", "0.0123", "-0.0123", "-0.02 … 0", "0.85"]]);
});

test("a child that stays is never taken out, whatever comes and goes around it", () => {
  const moved = [], childNodes = [..."abcd"];
  const parent = {
    childNodes,
    removeChild(node) { moved.push(node); childNodes.splice(childNodes.indexOf(node), 1); },
    insertBefore(node, next) { moved.push(node); childNodes.splice(next === null ? childNodes.length : childNodes.indexOf(next), 0, node); },
  };
  for (const [nodes, touched] of [["xbyd", "acxy"], ["xbyd", ""], ["byde", "ex"], ["", "bdey"], ["ab", "ab"]]) {
    kit.arrange(parent, [...nodes]);
    assert.equal(childNodes.join(""), nodes);
    assert.equal(moved.splice(0).sort().join(""), touched);
  }
});
