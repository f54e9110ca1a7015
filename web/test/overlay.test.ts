import { expect, test } from "vitest";
import { coloured } from "../src/overlay";
import { golden, unpacked } from "./golden";

test.each(golden.maps.map((each) => [each.shape.join(" x "), each] as const))("the colours of a map of %s equal Python's", (_, each) => {
  const [, height, width] = each.shape as [number, number, number];
  const found = coloured({ width, height, data: Float32Array.from(each.values) });
  const expected = unpacked(each.colours);
  expect(found.length).toBe(4 * width * height);
  for (let i = 0; i < width * height; i++) {
    expect(found[4 * i + 3]).toBe(255);
    // A level apart where one rounds and the other does not.
    for (let c = 0; c < 3; c++) expect(Math.abs(found[4 * i + c]! - expected.data[3 * i + c]!)).toBeLessThanOrEqual(1);
  }
});

test("a map without differences has one colour", () => {
  const found = coloured({ width: 2, height: 2, data: new Float32Array(4).fill(0.5) });
  expect(new Set(Array.from({ length: 4 }, (_, i) => found.slice(4 * i, 4 * i + 4).join())).size).toBe(1);
});
