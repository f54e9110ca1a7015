import { describe, expect, test } from "vitest";
import { Familiarity, figures, percentWords, plainLabel, qualityProblem, verdictOf } from "../src/verdict";
import { golden, unpacked } from "./golden";

const { mean, whitening, limit } = golden.judged.familiarity;
const photos = Object.entries(golden.judged.photos);

describe("photos are judged as Python judges them", () => {
  test.each(photos)("%s", (_, { photo, problem, figures: expected, ood_score }) => {
    const pixels = unpacked(photo);
    expect(qualityProblem(pixels)).toBe(problem);
    // Python adds 32-bit floats: in a cell of one colour that leaves a spread which is not there.
    const flat = (i: number): boolean => expected[i]! < Math.log(0.015);
    figures(pixels).forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(flat(i) ? 0.05 : 5e-5));
    const score = new Familiarity(mean, whitening, limit).oodScore(pixels);
    expect(Math.abs(score / ood_score - 1)).toBeLessThan(expected.some((_, i) => flat(i)) ? 5e-3 : 1e-4);
  });

  test("with each of the problems", () => {
    const found = new Set(photos.map(([, { problem }]) => problem));
    expect(found).toEqual(new Set(["", "too dark", "too bright", "no leaf to be seen", "blurred", "smeared or cut off"]));
  });
});

test("the verdict names the first reason not to trust the label", () => {
  expect(verdictOf("too dark", 3, 0.1, 0.8)).toBe("unusable");
  expect(verdictOf("", 1.01, 0.99, 0.8)).toBe("unfamiliar");
  expect(verdictOf("", 1, 0.79, 0.8)).toBe("unsure");
  expect(verdictOf("", null, 0.8, 0.8)).toBe("answer");
  expect(verdictOf("", 0, 1, 1)).toBe("unsure");
});

test("labels and probabilities are written as Python writes them", () => {
  for (const [label, expected] of Object.entries(golden.labels)) expect(plainLabel(label)).toBe(expected);
  for (const [probability, expected] of Object.entries(golden.percents)) {
    const { kind, share } = percentWords(Number(probability));
    const words = `${Math.round(100 * share)} %`;
    expect(kind === "about" ? words : `${kind} ${words}`).toBe(expected);
  }
});
