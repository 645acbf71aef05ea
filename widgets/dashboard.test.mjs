import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import widget, { TABS } from "./dashboard.js";

test("each map has a tab, and the kernel knows its name", () => {
  const python = readFileSync(new URL("../k2lab/widgets/dashboard.py", import.meta.url), "utf8");
  const known = /tab = traitlets\.Enum\(\[(.*?)\]/s.exec(python)?.[1].match(/\w+/g);
  assert.deepEqual(TABS.map(([key]) => key), known);
});

test("every map can be filled by the dashboard as well as stand alone", () => {
  for (const [, label, view] of TABS) assert.deepEqual([typeof view.fill, typeof view.render, typeof label], ["function", "function", "string"]);
  assert.equal(typeof widget.render, "function");
});

test("options of the views are the dashboard's too", () => {
  const read = (name) => readFileSync(new URL(name, import.meta.url), "utf8");
  const dashboard = read("../k2lab/widgets/dashboard.py");
  for (const name of ["thoughts", "experts", "lens", "timeline", "attention", "compare"]) {
    for (const [, trait] of read(`./${name}.js`).matchAll(/(?:(?<!store\.|\)\?\.)\bmodel\.get\(|traitChoice\(\w+, |\btrait\()"(\w+)"/g)) assert.match(dashboard, new RegExp(`^    ${trait} = traitlets`, "m"), `${name}: ${trait}`);
  }
});
