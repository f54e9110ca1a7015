import { describe, expect, test } from "vitest";
import { ModelError, readManifest } from "../src/manifest";
import { golden } from "./golden";

const right = {
  model: "mobilenetv3_large_100",
  classes: ["a", "b"],
  preprocessing: { image_size: 224, resize: "crop", mean: [0, 0, 0], std: [1, 1, 1] },
  weights_file: "leaf.onnx",
  weights_sha256: "ab",
  temperature: 0.8,
  threshold: 0.7,
  familiarity: golden.judged.familiarity,
  format_version: 1,
};

test("a manifest is read, with the defaults of the fields that it may lack", () => {
  expect(readManifest(right)).toMatchObject({ classes: ["a", "b"], temperature: 0.8, threshold: 0.7 });
  const { temperature: _1, threshold: _2, familiarity: _3, ...least } = right;
  expect(readManifest(least)).toMatchObject({ temperature: 1, threshold: 0, familiarity: null });
});

describe("a wrong field is named", () => {
  test.each([
    ["format_version", { format_version: 2 }],
    ["classes", { classes: "ab" }],
    ["classes", { classes: ["a", "a"] }],
    ["image_size", { preprocessing: { image_size: 0 } }],
    ["resize", { preprocessing: { image_size: 8, resize: "pad" } }],
    ["temperature", { temperature: 0 }],
    ["threshold", { threshold: 1.5 }],
    ["familiarity.mean", { familiarity: { ...right.familiarity, mean: [1] } }],
    ["familiarity.limit", { familiarity: { ...right.familiarity, limit: 0 } }],
    ["weights_sha256", { weights_sha256: null }],
  ])("%s", (field, change) => {
    expect(() => readManifest({ ...right, ...change })).toThrow(ModelError);
    expect(() => readManifest({ ...right, ...change })).toThrow(field);
  });

  test("and so is something else than a manifest", () => {
    for (const each of [null, [], "text", 3]) expect(() => readManifest(each)).toThrow(ModelError);
  });
});
