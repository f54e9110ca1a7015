/**
 * The loops over all pixels of a photo, in AssemblyScript: WebAssembly with SIMD, several times as fast as JavaScript.
 *
 * Addresses are offsets in the memory, where src/kernels.ts puts the operands. Pixels have four bytes, red, green, blue and
 * one without meaning. All operands and results may be read and written up to 16 bytes beyond their end.
 */

const PRECISION_BITS: i32 = 22;
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/** Converts pixels of three bytes to four. */
export function expand(from: usize, count: i32, to: usize): void {
  for (let i = 0; i < count; i += 4, from += 12, to += 16) {
    const rgb = v128.load(from);
    v128.store(to, v128.shuffle<u8>(rgb, rgb, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11));
  }
}

/** Converts pixels of four bytes to three. */
export function pack(from: usize, count: i32, to: usize): void {
  for (let i = 0; i < count; i += 4, from += 16, to += 12) {
    const pixels = v128.load(from);
    v128.store(to, v128.shuffle<u8>(pixels, pixels, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0));
  }
}

/** Sums pixels `step` bytes apart from `from` on, by `count` weights of 22 bits; returns four sums. */
@inline
function weighted(from: usize, step: usize, weights: usize, count: i32): v128 {
  let sum = i32x4.splat(HALF);
  for (let k = 0; k < count; k++, from += step, weights += 4) {
    const pixel = v128.extend_low<u16>(v128.extend_low<u8>(v128.load32_zero(from)));
    sum = i32x4.add(sum, i32x4.mul(pixel, v128.load32_splat(weights)));
  }
  return i32x4.shr_s(sum, PRECISION_BITS);
}

/** Rounds four sums to bytes from 0 to 255, in the lowest four bytes. */
@inline
function clipped(sum: v128): v128 {
  const words = i16x8.narrow_i32x4_s(sum, sum);
  return i8x16.narrow_i16x8_u(words, words);
}

/** Resizes `rows` rows of `inWidth` pixels to `width`; `starts` and `counts` give the range of each column's weights. */
export function resampleRows(
  from: usize, rows: i32, inWidth: i32, starts: usize, counts: usize, weights: usize, size: i32, width: i32, to: usize,
): void {
  for (let y = 0; y < rows; y++, from += 4 * inWidth) {
    for (let x = 0; x < width; x++, to += 4) {
      const first = from + 4 * load<i32>(starts + 4 * x);
      v128.store32_lane(to, clipped(weighted(first, 4, weights + 4 * size * x, load<i32>(counts + 4 * x))), 0);
    }
  }
}

/** Resizes columns of `width` pixels to `height`; arguments as of `resampleRows`. */
export function resampleColumns(
  from: usize, width: i32, starts: usize, counts: usize, weights: usize, size: i32, height: i32, to: usize,
): void {
  const stride = 4 * width;
  for (let y = 0; y < height; y++, to += stride, weights += 4 * size) {
    const first = from + stride * load<i32>(starts + 4 * y);
    const count = load<i32>(counts + 4 * y);
    for (let x = 0; x < stride; x += 16) {
      let a = i32x4.splat(HALF);
      let b = a;
      let c = a;
      let d = a;
      for (let k = 0; k < count; k++) {
        const pixels = v128.load(first + x + stride * k);
        const weight = v128.load32_splat(weights + 4 * k);
        const low = v128.extend_low<u8>(pixels);
        const high = v128.extend_high<u8>(pixels);
        a = i32x4.add(a, i32x4.mul(v128.extend_low<u16>(low), weight));
        b = i32x4.add(b, i32x4.mul(v128.extend_high<u16>(low), weight));
        c = i32x4.add(c, i32x4.mul(v128.extend_low<u16>(high), weight));
        d = i32x4.add(d, i32x4.mul(v128.extend_high<u16>(high), weight));
      }
      v128.store(
        to + x,
        i8x16.narrow_i16x8_u(
          i16x8.narrow_i32x4_s(i32x4.shr_s(a, PRECISION_BITS), i32x4.shr_s(b, PRECISION_BITS)),
          i16x8.narrow_i32x4_s(i32x4.shr_s(c, PRECISION_BITS), i32x4.shr_s(d, PRECISION_BITS)),
        ),
      );
    }
  }
}

const WHITE: i32 = 250;
const COLOURED: f32 = 0.08;
const DARK: i32 = 60;
const SAME: i8 = 1;
const BLACK: i8 = 8;
const WHOLE_WIDTH: f64 = 0.8;
const COLOURS: i32 = 0xffffff;

/** Returns one colour of four pixels as integers: 0 red, 8 green, 16 blue. */
@inline
function colour(pixels: v128, shift: i32): v128 {
  return v128.and(i32x4.shr_u(pixels, shift), i32x4.splat(0xff));
}

/** Returns the lanes of a mask that lie within the photo, one bit each. */
@inline
function within(mask: v128, left: i32): i32 {
  return i32x4.bitmask(mask) & (left < 4 ? (1 << left) - 1 : 15);
}

@inline
function both(values: v128): f64 {
  return f64x2.extract_lane(values, 0) + f64x2.extract_lane(values, 1);
}

/** Adds four numbers to two sums. */
@inline
function added(sums: v128, values: v128): v128 {
  const high = v128.shuffle<u32>(values, values, 2, 3, 2, 3);
  return f64x2.add(f64x2.add(sums, f64x2.promote_low_f32x4(values)), f64x2.promote_low_f32x4(high));
}

/**
 * Computes the brightness of all pixels (ITU-R BT.601), and counts dark, white and leaf-coloured ones in every second row and
 * column.
 */
export function countColours(from: usize, width: i32, height: i32, light: usize, darkest: f32, counts: usize): void {
  let dark = 0;
  let white = 0;
  let leaf = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x += 4) {
      const at = y * width + x;
      const pixels = v128.load(from + 4 * at);
      const red = colour(pixels, 0);
      const green = colour(pixels, 8);
      const blue = colour(pixels, 16);
      const shine = f32x4.add(
        f32x4.add(
          f32x4.mul(f32x4.convert_i32x4_s(red), f32x4.splat(0.299)),
          f32x4.mul(f32x4.convert_i32x4_s(green), f32x4.splat(0.587)),
        ),
        f32x4.mul(f32x4.convert_i32x4_s(blue), f32x4.splat(0.114)),
      );
      v128.store(light + 4 * at, shine);
      if (y & 1) continue;
      const left = width - x;
      dark += popcnt(within(f32x4.lt(shine, f32x4.splat(darkest)), left) & 5);
      const least = i32x4.min_s(i32x4.min_s(red, green), blue);
      white += popcnt(within(i32x4.gt_s(least, i32x4.splat(WHITE)), left) & 5);
      const warm = i32x4.sub(i32x4.add(red, green), i32x4.shl(blue, 1));
      const fresh = i32x4.sub(i32x4.sub(i32x4.shl(green, 1), red), blue);
      const sum = i32x4.add(i32x4.add(red, green), i32x4.add(blue, i32x4.splat(DARK)));
      const coloured = f32x4.gt(
        f32x4.convert_i32x4_s(i32x4.max_s(warm, fresh)),
        f32x4.mul(f32x4.convert_i32x4_s(sum), f32x4.splat(2 * COLOURED)),
      );
      leaf += popcnt(within(coloured, left) & 5);
    }
  }
  store<i32>(counts, dark);
  store<i32>(counts + 4, white);
  store<i32>(counts + 8, leaf);
}

/** Returns the root mean square of the Laplacian divided by the standard deviation (Pech-Pacheco et al. 2000). */
export function sharpness(light: usize, width: i32, height: i32): f64 {
  let squares = f64x2.splat(0);
  const row = 4 * width;
  for (let y = 1; y < height - 1; y++) {
    const end = width - 1;
    for (let x = 1; x < end; x += 4) {
      const at = light + 4 * (y * width + x);
      const around = f32x4.add(
        f32x4.add(v128.load(at + 4), v128.load(at - 4)),
        f32x4.add(v128.load(at + row), v128.load(at - row)),
      );
      let detail = f32x4.sub(around, f32x4.mul(v128.load(at), f32x4.splat(4)));
      if (end - x < 4) detail = v128.and(detail, i32x4.lt_s(i32x4(0, 1, 2, 3), i32x4.splat(end - x)));
      squares = added(squares, f32x4.mul(detail, detail));
    }
  }
  const count = width * height;
  let sums = f64x2.splat(0);
  let at = 0;
  for (; at + 4 <= count; at += 4) sums = added(sums, v128.load(light + 4 * at));
  let sum = both(sums);
  for (let i = at; i < count; i++) sum += load<f32>(light + 4 * i);
  const mean = sum / count;
  let spreads = f64x2.splat(0);
  for (at = 0; at + 4 <= count; at += 4) {
    const deviation = f32x4.sub(v128.load(light + 4 * at), f32x4.splat(f32(mean)));
    spreads = added(spreads, f32x4.mul(deviation, deviation));
  }
  let spread = both(spreads);
  for (let i = at; i < count; i++) {
    const deviation = load<f32>(light + 4 * i) - mean;
    spread += deviation * deviation;
  }
  return Math.sqrt(both(squares) / ((width - 2) * (height - 2))) / (Math.sqrt(spread / count) + 4);
}

/** Returns the longest run of rows that repeat the row above. */
export function repeatedRows(from: usize, width: i32, height: i32): i32 {
  let longest = 0;
  let run = 0;
  const colours = i32x4.splat(COLOURS);
  const none = i32x4.splat(0);
  for (let y = 1; y < height; y++) {
    let same = 0;
    for (let x = 0; x < width; x += 4) {
      const at = from + 4 * (y * width + x);
      const here = v128.load(at);
      const above = v128.load(at - 4 * width);
      const step = v128.or(i8x16.sub_sat_u(here, above), i8x16.sub_sat_u(above, here));
      const moved = v128.and(i8x16.gt_u(step, i8x16.splat(SAME)), colours);
      const lit = v128.and(i8x16.gt_u(here, i8x16.splat(BLACK)), colours);
      const toned = v128.and(i8x16.lt_u(here, i8x16.splat(WHITE as i8)), colours);
      const repeats = v128.and(i32x4.eq(moved, none), v128.and(i32x4.ne(lit, none), i32x4.ne(toned, none)));
      same += popcnt(within(repeats, width - x));
    }
    run = (same as f64) / width < WHOLE_WIDTH ? 0 : run + 1;
    longest = max(longest, run);
  }
  return longest;
}
