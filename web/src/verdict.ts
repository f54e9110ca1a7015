/** Judges how reliable a predicted label is, as src/agridistill/runtime/verdict.py does, with the same limits. */

import { kernels, put, room, takenIntegers } from "./kernels";
import type { Pixels } from "./resample";

/**
 * "answer": the probability reaches the threshold. "unsure": it does not. "unfamiliar": the photo is unlike the
 * training photos. "unusable": the photo failed the quality gate.
 */
export type Verdict = "answer" | "unsure" | "unfamiliar" | "unusable";

export const PROBLEMS = ["too dark", "too bright", "no leaf to be seen", "blurred", "smeared or cut off"] as const;
/** What the quality gate found; "" if it found nothing. */
export type Problem = (typeof PROBLEMS)[number] | "";

/** The square photo as the model gets it. */
export interface Prediction {
  readonly label: string;
  readonly probability: number;
  /** In the order of the manifest's classes. */
  readonly probabilities: readonly number[];
  /** Above 1 the photo is unlike the training photos; null if these are unknown. */
  readonly oodScore: number | null;
  readonly problem: Problem;
  readonly verdict: Verdict;
}

export const QUALITY = { darkest: 50, brightest: 0.35, blurriest: 0.06, leastLeaf: 0.01, smeared: 0.15 };
const WHOLE_HEIGHT = 0.9;
const CELLS = 3;
const PIXELS_A_SIDE = 75;
export const FIGURES = 6 * CELLS * CELLS;

/** Returns the first limit that a photo breaks, or "" if it breaks none. */
export function qualityProblem(pixels: Pixels, settings = QUALITY): Problem {
  const { width, height, data } = pixels;
  const [staged, photo, light, counts] = room(data.length, 4 * width * height, 4 * width * height, 12);
  put(data, staged);
  kernels().expand(staged, width * height, photo);
  kernels().countColours(photo, width, height, light, settings.darkest, counts);
  const [dark, white, leaf] = takenIntegers(counts, 3) as unknown as [number, number, number];
  const count = Math.ceil(width / 2) * Math.ceil(height / 2);
  // To sort takes longer than all the rest, and only a photo at the limit needs it.
  if (dark > 0.95 * (count - 1) && quantile(sampledLight(pixels), 0.95) < settings.darkest) return "too dark";
  if (white / count > settings.brightest) return "too bright";
  if (leaf / count < settings.leastLeaf) return "no leaf to be seen";
  const sharpness = Math.min(width, height) < 3 ? 0 : kernels().sharpness(light, width, height);
  if (sharpness < settings.blurriest) return "blurred";
  const repeated = kernels().repeatedRows(photo, width, height) / height;
  if (settings.smeared < repeated && repeated < WHOLE_HEIGHT) return "smeared or cut off";
  return "";
}

/** Computes the brightness in every second row and column (ITU-R BT.601). */
function sampledLight({ width, height, data }: Pixels): Float32Array {
  const light = new Float32Array(Math.ceil(width / 2) * Math.ceil(height / 2));
  let to = 0;
  for (let y = 0; y < height; y += 2) {
    for (let at = 3 * y * width; at < 3 * (y + 1) * width; at += 6) {
      light[to++] = 0.299 * data[at]! + 0.587 * data[at + 1]! + 0.114 * data[at + 2]!;
    }
  }
  return light;
}

function quantile(values: Float32Array, share: number): number {
  const sorted = values.sort();
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const low = sorted[below]!;
  return low + (place - below) * (sorted[Math.min(below + 1, sorted.length - 1)]! - low);
}

/** Detects photos unlike the training photos by a normal distribution of their `figures` (Lee et al. 2018). */
export class Familiarity {
  constructor(
    private readonly mean: readonly number[],
    /** The lower triangle row by row. */
    private readonly whitening: readonly number[],
    private readonly limit: number,
  ) {}

  /** Returns how unlike the training photos a photo is: 0 or more; above 1 it is unfamiliar. */
  oodScore(pixels: Pixels): number {
    const found = figures(pixels);
    let distance = 0;
    let at = 0;
    for (let row = 0; row < FIGURES; row++) {
      let sum = 0;
      for (let column = 0; column <= row; column++) {
        sum += this.whitening[at++]! * (found[column]! - this.mean[column]!);
      }
      distance += sum * sum;
    }
    return distance / this.limit;
  }
}

/**
 * Describes light, colour and texture of a photo by 54 numbers.
 *
 * Six numbers for each of 3 x 3 cells: the shares of red and green, the brightness, and the logarithms of the spread of
 * brightness, of the mean difference between neighbouring pixels and of the spread of colour.
 */
export function figures({ width, data }: Pixels): Float64Array {
  const step = Math.max(1, Math.floor(width / PIXELS_A_SIDE));
  const side = Math.floor(Math.ceil(width / step) / CELLS);
  const whole = CELLS * side;
  const red = new Float32Array(whole * whole);
  const green = new Float32Array(whole * whole);
  const blue = new Float32Array(whole * whole);
  const light = new Float32Array(whole * whole);
  for (let y = 0; y < whole; y++) {
    for (let x = 0; x < whole; x++) {
      const from = 3 * (y * step * width + x * step);
      const to = y * whole + x;
      red[to] = data[from]! / 255;
      green[to] = data[from + 1]! / 255;
      blue[to] = data[from + 2]! / 255;
      light[to] = (red[to]! + green[to]! + blue[to]!) / 3;
    }
  }
  const cells = CELLS * CELLS;
  // A list of these in the loop would take ten times as long.
  const sums = Array.from({ length: 8 }, () => new Float64Array(cells)) as Eight<Float64Array>;
  const [reds, greens, blues, squares, redSquares, greenSquares, blueSquares, steps] = sums;
  for (let y = 0; y < whole; y++) {
    let cell = CELLS * Math.floor(y / side);
    for (let x = 0; x < whole; x++) {
      if (x === side || x === 2 * side) cell++;
      const at = y * whole + x;
      const here = light[at]!;
      const across = x ? Math.abs(here - light[at - 1]!) : 0;
      const down = y ? Math.abs(here - light[at - whole]!) : 0;
      const [r, g, b] = [red[at]!, green[at]!, blue[at]!];
      reds[cell]! += r;
      greens[cell]! += g;
      blues[cell]! += b;
      squares[cell]! += here ** 2;
      redSquares[cell]! += (r - here) ** 2;
      greenSquares[cell]! += (g - here) ** 2;
      blueSquares[cell]! += (b - here) ** 2;
      steps[cell]! += across + down;
    }
  }
  const found = new Float64Array(FIGURES);
  for (let cell = 0; cell < cells; cell++) {
    const [r, g, b, square, r2, g2, b2, texture] = sums.map((plane) => plane[cell]! / (side * side)) as Eight<number>;
    const total = r + g + b;
    const grey = total / 3;
    const spread = (square: number, mean: number): number => Math.sqrt(Math.max(square - (mean - grey) ** 2, 0));
    const colourSpread = (spread(r2, r) + spread(g2, g) + spread(b2, b)) / 3;
    found[2 * cell] = (3 * r) / (total + 0.2);
    found[2 * cell + 1] = (3 * g) / (total + 0.2);
    found[2 * cells + cell] = total;
    found[3 * cells + cell] = Math.log(Math.sqrt(Math.max(square - grey ** 2, 0)) + 0.01);
    found[4 * cells + cell] = Math.log(texture + 0.003);
    found[5 * cells + cell] = Math.log(colourSpread + 0.005);
  }
  return found;
}

type Eight<T> = [T, T, T, T, T, T, T, T];

/** Returns how reliable a label is. */
export function verdictOf(
  problem: Problem,
  oodScore: number | null,
  probability: number,
  threshold: number,
): Verdict {
  if (problem) return "unusable";
  if (oodScore !== null && oodScore > 1) return "unfamiliar";
  // With a threshold of 1 the model never answers, not even if a probability is rounded to 1.
  return probability < threshold || threshold >= 1 ? "unsure" : "answer";
}

/** Makes a class name readable: "___" and "/" become ": ", underscores become spaces. */
export function plainLabel(label: string): string {
  const parts = label.split(/___|\//).map((part) => part.replaceAll("_", " ").split(/\s+/).filter(Boolean).join(" "));
  return parts.filter(Boolean).join(": ") || label;
}

/** A probability in whole per cent, never 0 % or 100 %: "over" 0.99, "under" 0.01, or "about" the rounded value. */
export function percentWords(probability: number): { kind: "over" | "under" | "about"; share: number } {
  if (probability >= 0.995) return { kind: "over", share: 0.99 };
  if (probability < 0.005) return { kind: "under", share: 0.01 };
  return { kind: "about", share: Math.round(100 * probability) / 100 };
}
