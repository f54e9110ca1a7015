/** Judges how reliable a predicted label is, as src/agridistill/runtime/verdict.py does, with the same limits. */

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
const WHITE = 250;
const COLOURED = 0.08;
const DARK = 60;
const SAME = 1;
const BLACK = 8;
const WHOLE_WIDTH = 0.8;
const WHOLE_HEIGHT = 0.9;
const CELLS = 3;
const PIXELS_A_SIDE = 75;
export const FIGURES = 6 * CELLS * CELLS;

/** Returns the first limit that a photo breaks, or "" if it breaks none. */
export function qualityProblem(pixels: Pixels, settings = QUALITY): Problem {
  const light = lightOf(pixels);
  const { width, height, data } = pixels;
  const sampled = new Float32Array(Math.ceil(width / 2) * Math.ceil(height / 2));
  let count = 0;
  let dark = 0;
  let white = 0;
  let leaf = 0;
  for (let y = 0; y < height; y += 2) {
    for (let x = 0; x < width; x += 2) {
      const at = y * width + x;
      sampled[count++] = light[at]!;
      dark += Number(light[at]! < settings.darkest);
      const red = data[3 * at]!;
      const green = data[3 * at + 1]!;
      const blue = data[3 * at + 2]!;
      white += Number(Math.min(red, green, blue) > WHITE);
      const coloured = Math.max((red + green) / 2 - blue, (2 * green - red - blue) / 2);
      leaf += Number(coloured > Math.fround(COLOURED) * (red + green + blue + DARK));
    }
  }
  // To sort takes longer than all the rest, and only a photo at the limit needs it.
  if (dark > 0.95 * (count - 1) && quantile(sampled, 0.95) < settings.darkest) return "too dark";
  if (white / sampled.length > settings.brightest) return "too bright";
  if (leaf / sampled.length < settings.leastLeaf) return "no leaf to be seen";
  if (sharpness(light, width, height) < settings.blurriest) return "blurred";
  const repeated = repeatedShare(pixels);
  if (settings.smeared < repeated && repeated < WHOLE_HEIGHT) return "smeared or cut off";
  return "";
}

function lightOf({ data }: Pixels): Float32Array {
  const light = new Float32Array(data.length / 3);
  for (let i = 0; i < light.length; i++) {
    light[i] = 0.299 * data[3 * i]! + 0.587 * data[3 * i + 1]! + 0.114 * data[3 * i + 2]!; // ITU-R BT.601
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

/** Returns the root mean square of the Laplacian divided by the standard deviation (Pech-Pacheco et al. 2000). */
function sharpness(light: Float32Array, width: number, height: number): number {
  if (Math.min(width, height) < 3) return 0;
  let squares = 0;
  for (let y = 1; y < height - 1; y++) {
    for (let x = 1; x < width - 1; x++) {
      const at = y * width + x;
      const around = light[at + 1]! + light[at - 1]! + light[at + width]! + light[at - width]!;
      squares += (around - 4 * light[at]!) ** 2;
    }
  }
  // Loops take a fifth of the time of reduce.
  let sum = 0;
  for (let i = 0; i < light.length; i++) sum += light[i]!;
  const mean = sum / light.length;
  let spread = 0;
  for (let i = 0; i < light.length; i++) spread += (light[i]! - mean) ** 2;
  return Math.sqrt(squares / ((width - 2) * (height - 2))) / (Math.sqrt(spread / light.length) + 4);
}

/** Returns the longest run of rows that repeat the row above, as a share of the height, 0 to 1. */
function repeatedShare({ width, height, data }: Pixels): number {
  const stride = 3 * width;
  let longest = 0;
  let run = 0;
  for (let y = 1; y < height; y++) {
    let same = 0;
    for (let at = y * stride; at < (y + 1) * stride; at += 3) {
      const red = data[at]!;
      const green = data[at + 1]!;
      const blue = data[at + 2]!;
      const step = Math.max(
        Math.abs(red - data[at - stride]!),
        Math.abs(green - data[at + 1 - stride]!),
        Math.abs(blue - data[at + 2 - stride]!),
      );
      same += Number(step <= SAME && Math.max(red, green, blue) > BLACK && Math.min(red, green, blue) < WHITE);
    }
    run = same / width < WHOLE_WIDTH ? 0 : run + 1;
    longest = Math.max(longest, run);
  }
  return longest / height;
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
  const size = side * side;
  // A list of these in the loop would take ten times as long.
  const means = Array.from({ length: 8 }, () => new Float64Array(cells)) as Eight<Float64Array>;
  const [reds, greens, blues, squares, redSquares, greenSquares, blueSquares, steps] = means;
  for (let y = 0; y < whole; y++) {
    for (let x = 0; x < whole; x++) {
      const at = y * whole + x;
      const here = light[at]!;
      const across = x ? Math.abs(here - light[at - 1]!) : 0;
      const down = y ? Math.abs(here - light[at - whole]!) : 0;
      const cell = CELLS * Math.floor(y / side) + Math.floor(x / side);
      const [r, g, b] = [red[at]!, green[at]!, blue[at]!];
      reds[cell]! += r / size;
      greens[cell]! += g / size;
      blues[cell]! += b / size;
      squares[cell]! += here ** 2 / size;
      redSquares[cell]! += (r - here) ** 2 / size;
      greenSquares[cell]! += (g - here) ** 2 / size;
      blueSquares[cell]! += (b - here) ** 2 / size;
      steps[cell]! += (across + down) / size;
    }
  }
  const found = new Float64Array(FIGURES);
  for (let cell = 0; cell < cells; cell++) {
    const [r, g, b, square, r2, g2, b2, texture] = means.map((plane) => plane[cell]!) as Eight<number>;
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
