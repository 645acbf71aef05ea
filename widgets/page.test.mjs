import assert from "node:assert/strict";
import { test } from "node:test";

import { bytes, pageModel } from "./page.js";

test("a model without a kernel keeps traits and tells of changes", () => {
  const model = pageModel({ layer: -1 }), seen = [];
  const act = () => seen.push(model.get("layer"));
  model.on("change:layer", act);
  model.set("layer", 3);
  model.set("layer", 3);
  model.off("change:layer", act);
  model.set("layer", 4);
  model.save_changes();
  assert.deepEqual([seen, model.get("layer")], [[3], 4]);
});

test("a detail that was not saved with the page is answered as missing", async () => {
  const model = pageModel({}), answers = [];
  model.on("msg:custom", (message) => answers.push(message));
  model.send({ type: "detail", key: "route:3:-1" });
  model.send({ type: "stop" });
  await Promise.resolve();
  assert.deepEqual(answers.map((one) => [one.key, one.provenance, one.arrays]), [["route:3:-1", "missing", ""]]);
});

test("base64 gives its bytes", () => {
  assert.deepEqual([...new Uint8Array(bytes("AAH/"))], [0, 1, 255]);
});
