/**
 * Pools the leaves of one plant into one answer, as a device pools the leaves of a plot
 * (`PlotHealth` in src/agridistill/edge/alerts/rules.py): by the mean of their probabilities.
 */

import type { Prediction, Verdict } from "./verdict";

export const MOST_LEAVES = 6;
/** From this share of ill leaves on, the plant is named by its most frequent illness, not by the healthy rest. */
const ILL_SHARE = 0.3;
const NEGATIONS = new Set(["not", "non", "no", "un"]);

export interface PlantHealth {
  /** All leaves, and those that count: photos that are unusable or unlike the training photos do not. */
  readonly leaves: number;
  readonly counted: number;
  /** Expected number of ill leaves among those that count. */
  readonly illLeaves: number;
  readonly label: string;
  /** Mean probability of the label over the leaves that count. */
  readonly probability: number;
  /** "answer" if at least one leaf is answered with the label by itself, else "unsure". */
  readonly verdict: Verdict;
}

/** Returns the answer for a plant; null if none of its leaves counts. */
export function pooled(leaves: readonly Prediction[], classes: readonly string[]): PlantHealth | null {
  const counted = leaves.filter(({ verdict }) => verdict === "answer" || verdict === "unsure");
  if (!counted.length) return null;
  const shares = classes.map((_, i) => counted.reduce((sum, each) => sum + each.probabilities[i]!, 0) / counted.length);
  const all = classes.map((_, i) => i);
  const ill = all.filter((i) => !isHealthy(classes[i]!));
  const illShare = ill.reduce((sum, i) => sum + shares[i]!, 0);
  const best = (among: readonly number[]): number => among.reduce((most, i) => (shares[i]! > shares[most]! ? i : most), among[0]!);
  const found = best(ill.length && illShare >= ILL_SHARE ? ill : all);
  const label = classes[found]!;
  return {
    leaves: leaves.length,
    counted: counted.length,
    illLeaves: Math.round(illShare * counted.length),
    label,
    probability: shares[found]!,
    verdict: counted.some((each) => each.verdict === "answer" && each.label === label) ? "answer" : "unsure",
  };
}

/** Whether a class means healthy leaves, by the part of its name after the last `___` or `/`. */
export function isHealthy(name: string): boolean {
  const last = name.split(/___|\//).at(-1)!;
  const words = (last.match(/[A-Z]?[a-z]+|[A-Z]+/g) ?? []).map((word) => word.toLowerCase());
  if (words.join(" ") === "normal") return true;
  const at = words.indexOf("healthy");
  return at >= 0 && !words.slice(0, at).some((word) => NEGATIONS.has(word));
}
