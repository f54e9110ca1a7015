import { describe, expect, test } from "vitest";
import { jpegFactor, jpegSize } from "../src/jpeg";
import { kindOf, scaledDown, seenPart, softmax, toPixels } from "../src/preprocess";
import { cropped, reduced, resample, whole, type Pixels } from "../src/resample";
import { golden, rowsOf, unpacked } from "./golden";

describe("the input of the model equals Pillow's", () => {
  test.each(golden.resized.map((each) => [`${each.photo.width} x ${each.photo.height}, ${each.rule}`, each] as const))("%s", (_, each) => {
    const preprocessing = { image_size: each.size, resize: each.rule as "crop" | "stretch" };
    expect(toPixels(unpacked(each.photo), preprocessing)).toEqual(unpacked(each.expected));
  });

  test("also when the photo is read in strips", () => {
    for (const { photo, expected } of golden.boxes) {
      const { width, height } = expected;
      expect(resample(unpacked(photo), width, height, "box")).toEqual(unpacked(expected));
      expect(resample(rowsOf(unpacked(photo)), width, height, "box")).toEqual(unpacked(expected));
    }
  });

  test.each(golden.reduced.map((each) => [each.factor, each] as const))("scaled down by %i", (factor, each) => {
    expect(reduced(rowsOf(unpacked(each.photo)), factor)).toEqual(unpacked(each.expected));
  });
});

describe("a photo is scaled down while it is read", () => {
  const grey = (width: number, height: number): Pixels => ({ width, height, data: new Uint8Array(3 * width * height).fill(90) });
  const size = (width: number, height: number, kind: "jpeg" | "other"): number[] => {
    const found = scaledDown(rowsOf(grey(width, height)), kind, 448);
    expect(found.data.every((level) => level === 90)).toBe(true);
    return [found.width, found.height];
  };

  test("a JPEG to a half, but never below twice the input", () => {
    expect(size(895, 900, "jpeg")).toEqual([895, 900]);
    expect(size(897, 901, "jpeg")).toEqual([449, 451]);
    expect(size(1800, 2001, "jpeg")).toEqual([450, 501]);
  });

  test("another format only above 4 million pixels, by a mean", () => {
    expect(size(897, 901, "other")).toEqual([897, 901]);
    // Python: round(2050 * 896 / 2000), round(2000 * 896 / 2000)
    expect(size(2050, 2000, "other")).toEqual([918, 896]);
  });

  test("rows lose their alpha", () => {
    const photo = unpacked(golden.boxes[0]!.photo);
    expect(whole(rowsOf(photo))).toEqual(photo);
  });
});

describe("a JPEG is decoded smaller", () => {
  test.each(golden.jpegs.map((each) => [each.name, each] as const))("its size is in its header: %s", (_, { file, size }) => {
    const bytes = Uint8Array.from(Buffer.from(file, "base64"));
    expect(jpegSize(bytes)).toEqual(size);
    expect(jpegSize(Uint8Array.of(0xff, 0xd8, 0xff, 0xff, ...bytes.subarray(3)))).toEqual(size);
    for (let end = 0; end < bytes.length; end += 7) expect([null, size]).toContainEqual(jpegSize(bytes.slice(0, end)));
  });

  test("to an eighth at most, and never below the side that is needed", () => {
    const sides = [[895, 900], [896, 1792], [1800, 1791], [4000, 3000], [20_000, 20_000]] as const; // prettier-ignore
    expect(sides.map(([width, height]) => jpegFactor(width, height, 448))).toEqual([1, 2, 2, 4, 8]);
  });
});

test("the model sees the central square, or all of it", () => {
  expect(seenPart(5, 2, { image_size: 8, resize: "crop" })).toEqual([1.5, 0, 3.5, 2]);
  expect(seenPart(5, 2, { image_size: 8, resize: "stretch" })).toEqual([0, 0, 5, 2]);
  const { width, height } = cropped(unpacked(golden.boxes[0]!.photo), [15.5, 0, 84.5, 69]);
  expect([width, height]).toEqual([68, 69]);
});

test("files are known by their first bytes, whatever their name", () => {
  const head = (text: string): Uint8Array => Uint8Array.from(text, (each) => each.charCodeAt(0));
  expect(kindOf(head("\u00ff\u00d8\u00ff\u00e0"))).toBe("jpeg");
  expect(kindOf(head("\0\0\0\x18ftypheic\0\0\0\0mif1"))).toBe("heic");
  expect(kindOf(head("\0\0\0\x18ftypavif\0\0\0\0"))).toBe("other");
  expect(kindOf(new Uint8Array())).toBe("other");
});

test("probabilities equal Python's, also of huge logits", () => {
  const { logits, temperature, expected } = golden.softmax;
  softmax(logits, { temperature }).forEach((value, i) => expect(value).toBeCloseTo(expected[i]!, 12));
  expect(softmax([1e4, 0], { temperature: 1 })).toEqual([1, 0]);
});
