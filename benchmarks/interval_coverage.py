"""How often a "95 %" interval of a difference between two methods holds the truth, by the number of seeds.

    python benchmarks/interval_coverage.py --out docs/performance/interval_coverage.json

Simulated studies: 218 leaves of 9 photos (as many as our test split), easy or hard as a whole; every run is 1.5 points
better or worse than its method (standard deviation), and both methods are equally good, so that each interval that
leaves zero out is wrong.
"ours" is `paired_difference`; "seeds drawn with replacement" draws seeds as it draws leaves. Exits with 1 where ours
holds in less than 91 % (95 %, less three standard errors) for two seeds or more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from reporting import machine, publish

from agridistill.study.summary import paired_difference

STUDIES, LEAVES, PHOTOS, SPREAD, RESAMPLES, LEAST = 300, 218, 9, 0.015, 400, 0.91


def drawn_with_replacement(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    right = (first.astype(float) - second).reshape(len(first), LEAVES, PHOTOS).mean(axis=2)
    leaves = rng.integers(0, LEAVES, (RESAMPLES, LEAVES))
    seeds = rng.integers(0, len(first), (RESAMPLES, len(first)))
    means = [right[np.ix_(chosen, drawn)].mean() for chosen, drawn in zip(seeds, leaves, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    leaf_ids = [str(leaf) for leaf in range(LEAVES) for _ in range(PHOTOS)]
    rows = []
    for seeds in (1, 2, 3, 5):
        rng = np.random.default_rng(seeds)
        holds = {"ours": 0, "seeds drawn with replacement": 0}
        for study in range(STUDIES):
            ease = np.repeat(rng.normal(1.5, 1, LEAVES), PHOTOS)
            chances = 1 / (1 + np.exp(-ease)) + rng.normal(0, SPREAD, (2 * seeds, 1))
            runs = rng.random((2 * seeds, LEAVES * PHOTOS)) < chances
            first, second = runs[:seeds], runs[seeds:]
            found = paired_difference(first, second, leaf_ids, paired_seeds=True, resamples=RESAMPLES, seed=study)
            holds["ours"] += found.points_ci95[0] <= 0 <= found.points_ci95[1]
            low, high = drawn_with_replacement(first, second, study)
            holds["seeds drawn with replacement"] += low <= 0 <= high
        rows.append({"seeds": seeds, **{f"share that holds, {name}": n / STUDIES for name, n in holds.items()}})
    enough = all(row["share that holds, ours"] >= LEAST for row in rows if row["seeds"] > 1)
    publish({"machine": machine(), "studies": STUDIES, "run_spread": SPREAD, "holds": enough, "rows": rows}, given.out)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
