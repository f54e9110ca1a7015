import { expect, test, vi } from "vitest";
import { kernels, put, room, taken, takenIntegers } from "../src/kernels";

/** Pixels with dark, white, grey and green places, and with rows that repeat the row above. */
function picture(width: number, height: number, seed: number): Uint8Array {
  let state = seed + 1;
  const random = (below: number): number => (state = (state * 48271) % 2147483647) % below;
  const data = new Uint8Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    const repeats = y > 0 && random(3) > 0;
    for (let at = 3 * y * width; at < 3 * (y + 1) * width; at += 3) {
      const base = [0, 251][random(30)] ?? 30 + random(170);
      const drawn = [base + random(5), base + random(60), base + random(5)];
      const colour = repeats && random(20) ? data.slice(at - 3 * width, at - 3 * width + 3) : drawn;
      for (const channel of [0, 1, 2]) data[at + channel] = Math.min(255, colour[channel]! + (repeats ? random(2) : 0));
    }
  }
  return data;
}

function measured(data: Uint8Array, width: number, height: number): Record<"photo" | "light" | "counts", number> {
  const [staged, photo, light, counts] = room(data.length, 4 * width * height, 4 * width * height, 12);
  // What lies behind the operands must not count.
  new Uint8Array(kernels().memory.buffer).fill(255);
  put(data, staged);
  kernels().expand(staged, width * height, photo);
  kernels().countColours(photo, width, height, light, 50, counts);
  return { photo, light, counts };
}

const SIZES = [3, 4, 5, 6, 7, 8, 13].map((width, number) => [width, 9 + number] as const);

test.each(SIZES)("the kernels compute what plain loops do: %i x %i", (width, height) => {
  const data = picture(width, height, width);
  const { photo, light, counts } = measured(data, width, height);
  const shine = Array.from({ length: width * height }, (_, i) => {
    return 0.299 * data[3 * i]! + 0.587 * data[3 * i + 1]! + 0.114 * data[3 * i + 2]!;
  });
  const found = [0, 0, 0];
  for (let y = 0; y < height; y += 2) {
    for (let x = 0; x < width; x += 2) {
      const [r, g, b] = data.slice(3 * (y * width + x)) as unknown as [number, number, number];
      found[0]! += Number(shine[y * width + x]! < 50);
      found[1]! += Number(Math.min(r, g, b) > 250);
      found[2]! += Number(Math.max((r + g) / 2 - b, (2 * g - r - b) / 2) > Math.fround(0.08) * (r + g + b + 60));
    }
  }
  expect([...takenIntegers(counts, 3)]).toEqual(found);

  let squares = 0;
  for (let y = 1; y < height - 1; y++) {
    for (let x = 1; x < width - 1; x++) {
      const at = y * width + x;
      squares += (shine[at + 1]! + shine[at - 1]! + shine[at + width]! + shine[at - width]! - 4 * shine[at]!) ** 2;
    }
  }
  const mean = shine.reduce((sum, each) => sum + each, 0) / shine.length;
  const spread = Math.sqrt(shine.reduce((sum, each) => sum + (each - mean) ** 2, 0) / shine.length);
  const sharp = Math.sqrt(squares / ((width - 2) * (height - 2))) / (spread + 4);
  expect(kernels().sharpness(light, width, height)).toBeCloseTo(sharp, 5);

  let [longest, run] = [0, 0];
  for (let y = 1; y < height; y++) {
    let same = 0;
    for (let at = 3 * y * width; at < 3 * (y + 1) * width; at += 3) {
      const pixel = [...data.slice(at, at + 3)];
      const step = Math.max(...pixel.map((level, channel) => Math.abs(level - data[at + channel - 3 * width]!)));
      same += Number(step <= 1 && Math.max(...pixel) > 8 && Math.min(...pixel) < 250);
    }
    run = same / width < 0.8 ? 0 : run + 1;
    longest = Math.max(longest, run);
  }
  expect(kernels().repeatedRows(photo, width, height)).toBe(longest);

  kernels().pack(photo, width * height, photo);
  expect(taken(photo, data.length)).toEqual(data);
});

test("the pictures of these tests have something of everything", () => {
  const { photo, counts } = measured(picture(13, 64, 0), 13, 64);
  expect([...takenIntegers(counts, 3), kernels().repeatedRows(photo, 13, 64)].map(Math.sign)).toEqual([1, 1, 1, 1]);
});

test("the memory for a large photo is given back with the next one", () => {
  room(40_000_000);
  expect(kernels().memory.buffer.byteLength).toBeGreaterThan(40_000_000);
  const [at] = room(4);
  put(Uint8Array.of(1, 2, 3, 4), at);
  expect(taken(at, 4)).toEqual(Uint8Array.of(1, 2, 3, 4));
  expect(kernels().memory.buffer.byteLength).toBeLessThan(100_000);
});

test("a browser without SIMD loads the page, which says so", async () => {
  vi.spyOn(WebAssembly, "validate").mockReturnValue(false);
  vi.spyOn(WebAssembly, "Module").mockImplementation(() => {
    throw new WebAssembly.CompileError("no SIMD");
  });
  vi.resetModules();
  const { requireModernBrowser } = await import("../src/problems");
  expect(requireModernBrowser).toThrow();
  vi.restoreAllMocks();
});
