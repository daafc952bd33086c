"""Write docs/intervals.md: how often the kit's 95% intervals hold the true difference, by simulation.

python scripts/interval_coverage.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prefix_rft_lab.core import rng
from prefix_rft_lab.runs.summary import INTERVALS, SHARE, estimate

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "intervals.md"
SEEDS = (2, 3, 5, 10)
PROBLEMS, SAMPLES, DRAWS = 64, 8, 1500
CASES = {
    "seeds do not differ": (0.0, 0.0),
    "seeds differ a little": (0.3, 0.0),
    "seeds differ as much as the methods do": (0.5, 0.0),
    "seeds differ much": (1.0, 0.0),
    "most problems solved by both": (0.3, 5.0),
    "hardly any solved by either": (0.3, -5.0),
}
"""What varies -> standard deviation over seeds, and mean over problems, of a run's log-odds to solve a problem."""
GAIN = 0.5
"""By how much the second method's log-odds lie above the first's."""
OF_PROBLEMS, OF_BOTH = 1.5, 0.5
"""Standard deviations of the log-odds over problems, and over problems within a method."""


def coverage(seeds: int, spread: float, level: float) -> float:
    """How often the 95% interval of a difference holds the true one, over :data:`DRAWS` draws."""
    draw = rng.generator(seeds, "coverage", f"{spread}", f"{level}")
    gains, hit = (0.0, GAIN), 0
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    scale = np.hypot(np.hypot(OF_PROBLEMS, OF_BOTH), spread)
    means = [(weights / weights.sum()) @ (1 / (1 + np.exp(-(level + gain + scale * nodes)))) for gain in gains]
    for _ in range(DRAWS):
        hard = draw.normal(level, OF_PROBLEMS, (1, PROBLEMS))
        tables = []
        for gain in gains:
            logits = hard + gain + draw.normal(0, OF_BOTH, (1, PROBLEMS)) + draw.normal(0, spread, (seeds, 1))
            tables.append(draw.binomial(SAMPLES, 1 / (1 + np.exp(-logits))) / SAMPLES)
        low, high = estimate(*tables, bounds=SHARE).interval()
        hit += low <= means[0] - means[1] <= high
    return hit / DRAWS


def page() -> str:
    rows = [
        f"| {name} | {spread:g} | {level:+g} | " + " | ".join(f"{coverage(n, spread, level):.1%}" for n in SEEDS) + " |"
        for name, (spread, level) in CASES.items()
    ]
    heads = " | ".join(f"{n} seeds" for n in SEEDS)
    return f"""# How sure the intervals are

Every interval of the kit (tables, figures, report, claims) comes from one function, `runs.summary.estimate`: {INTERVALS}.
It takes the squared errors over the seeds of each side and over the paired problems together, with Satterthwaite's degrees
of freedom; where few problems depart from the commonest score, the exact (Clopper-Pearson) limits of their part count.

This is how often such a 95% interval holds the true difference of two methods. Each draw is a comparison of {PROBLEMS} problems,
{SAMPLES} samples each, by two methods of as many seeds each; the second is better by {GAIN:g} in log-odds, problems differ by a standard
deviation of {OF_PROBLEMS:g}, and by {OF_BOTH:g} from method to method. {DRAWS} draws per cell measure 95% to within {(0.95 * 0.05 / DRAWS) ** 0.5:.1%} (one standard error).
`python scripts/interval_coverage.py` writes this page; a test makes it again and compares.

| | spread of seeds (log-odds) | mean log-odds | {heads} |
|---|---|---|{"---|" * len(SEEDS)}
{chr(10).join(rows)}

More than 95% is on the safe side: with no spread of seeds, or few problems that distinguish the methods, an interval is a little
wider than it has to be. None is corrected for the number of comparisons, but those of the claims.
"""


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
    print(f"written {DOCUMENT}")
