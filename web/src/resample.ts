/**
 * Resizes 8-bit RGB pixels with the same integers as Pillow, so that equal pixels give equal input of the model.
 *
 * Pillow (src/libImaging/Resample.c) resizes rows and columns one after the other, with weights rounded to 22 bits, and
 * rounds to 8 bits after each of the two.
 */

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
const HALF = 1 << (PRECISION_BITS - 1);
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

function clip8(value: number): number {
  const level = value >> PRECISION_BITS;
  return level < 0 ? 0 : level > 255 ? 255 : level;
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
  if (lostRows > 0 && lostRows > 2 * (source.width - width)) {
    const between = resampleColumns(bytesOf(source), source.width, down, height);
    return { width, height, data: resampleRows(bytesOf(between), 0, height, between.width, across, width) };
  }
  const firstRow = down.starts[0]!;
  const rows = down.starts[height - 1]! + down.counts[height - 1]! - firstRow;
  const data = resampleRows(bytesOf(source), firstRow, rows, source.width, across, width);
  const shifted = { ...down, starts: down.starts.map((start) => start - firstRow) };
  return resampleColumns(bytesOf({ width, height: rows, data }), width, shifted, height);
}

/** Bytes of `count` rows from row `top` on, with three or four for each pixel. */
interface Bytes {
  readonly channels: number;
  read(top: number, count: number): Uint8Array | Uint8ClampedArray;
}

function bytesOf(source: Pixels | Rows): Bytes {
  if (!("data" in source)) return { channels: 4, read: (top, count) => source.read(top, count) };
  const stride = source.width * CHANNELS;
  return { channels: CHANNELS, read: (top, count) => source.data.subarray(top * stride, (top + count) * stride) };
}

function resampleRows(
  { channels, read }: Bytes,
  firstRow: number,
  rows: number,
  inWidth: number,
  { size, starts, counts, values }: Weights,
  width: number,
): Uint8Array {
  const target = new Uint8Array(width * rows * CHANNELS);
  let at = 0;
  const atOnce = stripRows(inWidth);
  for (let top = 0; top < rows; top += atOnce) {
    const count = Math.min(atOnce, rows - top);
    const strip = read(firstRow + top, count);
    for (let begin = 0; begin < count * inWidth * channels; begin += inWidth * channels) {
      for (let x = 0; x < width; x++) {
        let red = HALF;
        let green = HALF;
        let blue = HALF;
        let from = begin + starts[x]! * channels;
        const last = x * size + counts[x]!;
        for (let k = x * size; k < last; k++) {
          const weight = values[k]!;
          red = (red + strip[from]! * weight) | 0;
          green = (green + strip[from + 1]! * weight) | 0;
          blue = (blue + strip[from + 2]! * weight) | 0;
          from += channels;
        }
        target[at++] = clip8(red);
        target[at++] = clip8(green);
        target[at++] = clip8(blue);
      }
    }
  }
  return target;
}

function resampleColumns(
  { channels, read }: Bytes,
  width: number,
  { size, starts, counts, values }: Weights,
  height: number,
): Pixels {
  const stride = width * CHANNELS;
  const data = new Uint8Array(stride * height);
  const sums = new Int32Array(stride);
  for (let y = 0; y < height; y++) {
    sums.fill(HALF);
    const count = counts[y]!;
    const rows = read(starts[y]!, count);
    for (let k = 0; k < count; k++) {
      const weight = values[y * size + k]!;
      let from = k * width * channels;
      if (channels === CHANNELS) {
        for (let x = 0; x < stride; x++) sums[x] = sums[x]! + rows[from++]! * weight;
      } else {
        for (let x = 0; x < stride; x += CHANNELS, from += channels) {
          sums[x] = sums[x]! + rows[from]! * weight;
          sums[x + 1] = sums[x + 1]! + rows[from + 1]! * weight;
          sums[x + 2] = sums[x + 2]! + rows[from + 2]! * weight;
        }
      }
    }
    const to = y * stride;
    for (let x = 0; x < stride; x++) data[to + x] = clip8(sums[x]!);
  }
  return { width, height, data };
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
