import { expect, test } from "vitest";
import { isHealthy, pooled } from "../src/pooling";
import type { Prediction } from "../src/verdict";
import { golden } from "./golden";

const classes = golden.classes;

function leaf(probabilities: number[], verdict: Prediction["verdict"] = "answer"): Prediction {
  const probability = Math.max(...probabilities);
  const label = classes[probabilities.indexOf(probability)]!;
  return { label, probability, probabilities, oodScore: 0, problem: "", verdict };
}

test("leaves are pooled as a device pools those of a plot", () => {
  for (const { probabilities, label, ill_leaves, shares } of golden.plants) {
    const found = pooled(probabilities.map((row) => leaf(row)), classes)!;
    expect([found.label, found.illLeaves]).toEqual([label, ill_leaves]);
    expect(found.probability).toBeCloseTo(shares[label as keyof typeof shares], 12);
  }
});

test("photos that cannot be judged do not count", () => {
  const ill = leaf([0.9, 0.05, 0.05]);
  const found = pooled([ill, leaf([0, 1, 0], "unusable"), leaf([0, 1, 0], "unfamiliar")], classes)!;
  expect(found).toMatchObject({ leaves: 3, counted: 1, illLeaves: 1, label: "Tomato___Late_blight" });
  expect(pooled([leaf([0, 1, 0], "unfamiliar")], classes)).toBeNull();
});

test("a plant is answered only if one leaf by itself is answered with its label", () => {
  expect(pooled([leaf([0.6, 0.2, 0.2], "unsure"), leaf([0.6, 0.3, 0.1], "unsure")], classes)!.verdict).toBe("unsure");
  expect(pooled([leaf([0.6, 0.2, 0.2], "unsure"), leaf([0.9, 0.1, 0])], classes)!.verdict).toBe("answer");
});

test("healthy classes are known by their names, as on a device", () => {
  for (const [name, expected] of Object.entries(golden.healthy)) expect([name, isHealthy(name)]).toEqual([name, expected]);
});
