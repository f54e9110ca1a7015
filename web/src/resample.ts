/**
 * Resizes 8-bit RGB pixels with the same integers as Pillow, so that equal pixels give equal input of the model.
 *
 * Pillow (src/libImaging/Resample.c) resizes rows and columns one after the other, with weights rounded to 22 bits, and
 * rounds to 8 bits after each of the two.
 */

import { kernels, put, room, taken } from "./kernels";

/** RGB pixels, row by row, three bytes each. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

/** Rows of an image that is not held as a whole: `read` returns `count` rows from row `top` on, RGBA. */
export interface Rows {
  readonly width: number;
  readonly height: number;
  read(top: number, count: number): Uint8ClampedArray | Uint8Array;
}

export type Filter = "bicubic" | "box";

/** A part of an image in pixels, possibly between them: left, top, right, bottom. */
export type Box = readonly [number, number, number, number];

const PRECISION_BITS = 32 - 8 - 2;
const CHANNELS = 3;
const [STRIP_PIXELS, LEAST_ROWS] = [1 << 20, 64];

/** Returns the number of rows that are read at a time: a strip takes 4 MB. */
export function stripRows(width: number): number {
  return Math.max(LEAST_ROWS, Math.floor(STRIP_PIXELS / width));
}

interface Weights {
  readonly size: number;
  readonly starts: Int32Array;
  readonly counts: Int32Array;
  readonly values: Int32Array;
}

function bicubic(x: number): number {
  const a = -0.5;
  const distance = Math.abs(x);
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
  return 0;
}

function box(x: number): number {
  return x > -0.5 && x <= 0.5 ? 1 : 0;
}

const FILTERS = { bicubic: { weight: bicubic, support: 2 }, box: { weight: box, support: 0.5 } };

function weights(inSize: number, from: number, to: number, outSize: number, filter: Filter): Weights {
  // Pillow holds the box in 32-bit floats.
  const start = Math.fround(from);
  const scale = Math.fround(Math.fround(to) - start) / outSize;
  const { weight, support: reach } = FILTERS[filter];
  const filterScale = Math.max(scale, 1);
  const support = reach * filterScale;
  const size = Math.ceil(support) * 2 + 1;
  const found = {
    size,
    starts: new Int32Array(outSize),
    counts: new Int32Array(outSize),
    values: new Int32Array(outSize * size),
  };
  const row = new Float64Array(size);
  for (let out = 0; out < outSize; out++) {
    const centre = start + (out + 0.5) * scale;
    const inverse = 1 / filterScale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(inSize, Math.trunc(centre + support + 0.5)) - first;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const value = weight((i + first - centre + 0.5) * inverse);
      row[i] = value;
      sum += value;
    }
    for (let i = 0; i < count; i++) {
      const value = sum === 0 ? row[i]! : row[i]! / sum;
      found.values[out * size + i] = Math.trunc((value < 0 ? -0.5 : 0.5) + value * (1 << PRECISION_BITS));
    }
    found.starts[out] = first;
    found.counts[out] = count;
  }
  return found;
}

/**
 * Resizes `part` of an image to `width` x `height`.
 *
 * Pillow 13 begins with the columns of tall images that lose more rows than twice the columns, which is faster; the
 * versions before it always begin with the rows. The results differ by a level or two.
 */
export function resample(source: Pixels | Rows, width: number, height: number, filter: Filter, part?: Box): Pixels {
  const [left, top, right, bottom] = part ?? [0, 0, source.width, source.height];
  const isWhole = [left, top, right, bottom].join() === [0, 0, source.width, source.height].join();
  if ("data" in source && isWhole && source.width === width && source.height === height) return source;
  const across = weights(source.width, left, right, width, filter);
  const down = weights(source.height, top, bottom, height, filter);
  const lostRows = source.height - height;
  const isTall = lostRows > 0 && lostRows > 2 * (source.width - width);
  const firstRow = down.starts[0]!;
  const rows = down.starts[height - 1]! + down.counts[height - 1]! - firstRow;
  const atOnce = isTall ? Math.max(...down.counts) : Math.min(rows, stripRows(source.width));
  const [strip, staged, between, result, acrossAt, downAt, zero] = room(
    4 * source.width * atOnce,
    "data" in source ? CHANNELS * source.width * atOnce : 0,
    4 * (isTall ? source.width * height : width * rows),
    4 * width * height,
    tableBytes(across),
    tableBytes(down),
    4,
  );
  const alongRows = putTable(across, acrossAt);
  const read = (from: number, count: number): void => {
    if ("data" in source) {
      const stride = CHANNELS * source.width;
      put(source.data.subarray(from * stride, (from + count) * stride), staged);
      kernels().expand(staged, source.width * count, strip);
    } else put(source.read(from, count), strip);
  };
  if (isTall) {
    const [, counts, values, size] = putTable(down, downAt);
    put(Int32Array.of(0), zero);
    for (let y = 0; y < height; y++) {
      read(down.starts[y]!, down.counts[y]!);
      const to = between + 4 * source.width * y;
      kernels().resampleColumns(strip, source.width, zero, counts + 4 * y, values + 4 * size * y, size, 1, to);
    }
    kernels().resampleRows(between, height, source.width, ...alongRows, width, result);
  } else {
    for (let y = 0; y < rows; y += atOnce) {
      const count = Math.min(atOnce, rows - y);
      read(firstRow + y, count);
      kernels().resampleRows(strip, count, source.width, ...alongRows, width, between + 4 * width * y);
    }
    const shifted = { ...down, starts: down.starts.map((start) => start - firstRow) };
    kernels().resampleColumns(between, width, ...putTable(shifted, downAt), height, result);
  }
  kernels().pack(result, width * height, result);
  return { width, height, data: taken(result, CHANNELS * width * height) };
}

function tableBytes({ starts, values }: Weights): number {
  return 8 * starts.length + 4 * values.length;
}

/** Copies weights into the memory of the kernels; returns the addresses of their parts, and their size. */
function putTable({ size, starts, counts, values }: Weights, at: number): [number, number, number, number] {
  const [countsAt, valuesAt] = [at + 4 * starts.length, at + 8 * starts.length];
  put(starts, at);
  put(counts, countsAt);
  put(values, valuesAt);
  return [at, countsAt, valuesAt, size];
}

/**
 * Averages squares of `factor` x `factor` pixels, as a JPEG decoder does that draws at 1/2, 1/4 or 1/8 of the size.
 *
 * The squares at the right and the lower edge may be cut off.
 */
export function reduced(source: Rows, factor: number): Pixels {
  const width = Math.ceil(source.width / factor);
  const height = Math.ceil(source.height / factor);
  const data = new Uint8Array(width * height * CHANNELS);
  // Two sums in one number: 64 pixels of 255 levels need 14 of the 16 bits of each.
  const redBlue = new Uint32Array(width);
  const green = new Uint32Array(width);
  const rowsAtOnce = stripRows(source.width) - (stripRows(source.width) % factor);
  let to = 0;
  for (let top = 0; top < source.height; top += rowsAtOnce) {
    const count = Math.min(rowsAtOnce, source.height - top);
    const strip = source.read(top, count);
    const pixels = new Uint32Array(strip.buffer, strip.byteOffset, count * source.width);
    for (let y = 0; y < count; y += factor) {
      const high = Math.min(factor, count - y);
      redBlue.fill(0);
      green.fill(0);
      for (let row = y; row < y + high; row++) {
        let from = row * source.width;
        const end = from + source.width;
        for (let x = 0; from < end; x++) {
          let [sumRedBlue, sumGreen] = [0, 0];
          for (const last = Math.min(from + factor, end); from < last; from++) {
            const pixel = pixels[from]!;
            sumRedBlue += pixel & 0xff00ff;
            sumGreen += (pixel >>> 8) & 0xff;
          }
          redBlue[x] = redBlue[x]! + sumRedBlue;
          green[x] = green[x]! + sumGreen;
        }
      }
      for (let x = 0; x < width; x++) {
        const number = high * Math.min(factor, source.width - x * factor);
        const half = number >> 1;
        data[to++] = ((redBlue[x]! & 0xffff) + half) / number;
        data[to++] = (green[x]! + half) / number;
        data[to++] = ((redBlue[x]! >>> 16) + half) / number;
      }
    }
  }
  return { width, height, data };
}

/** Copies all rows without their alpha. */
export function whole(source: Rows): Pixels {
  const data = new Uint8Array(source.width * source.height * CHANNELS);
  const atOnce = stripRows(source.width);
  let to = 0;
  for (let top = 0; top < source.height; top += atOnce) {
    const strip = source.read(top, Math.min(atOnce, source.height - top));
    for (let from = 0; from < strip.length; from += 4) {
      data[to++] = strip[from]!;
      data[to++] = strip[from + 1]!;
      data[to++] = strip[from + 2]!;
    }
  }
  return { width: source.width, height: source.height, data };
}

/** Copies a part of an image, without the pixels that it covers only partly. */
export function cropped(source: Pixels, [left, top, right, bottom]: Box): Pixels {
  const [x, y] = [Math.ceil(left), Math.ceil(top)];
  const [width, height] = [Math.max(1, Math.floor(right) - x), Math.max(1, Math.floor(bottom) - y)];
  const data = new Uint8Array(width * height * CHANNELS);
  for (let row = 0; row < height; row++) {
    const from = ((y + row) * source.width + x) * CHANNELS;
    data.set(source.data.subarray(from, from + width * CHANNELS), row * width * CHANNELS);
  }
  return { width, height, data };
}
