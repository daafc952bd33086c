"""How smoothly an explorer scrubs: its own paint time, and frames of the browser that were missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_SCRUB = """async ({ view, count }) => {
  const root = document.querySelector(`.prefix-explorer[aria-label="${view}"]`);
  const slider = root.querySelector('input[type="range"][aria-label="Training step"]');
  const paints = [], stamps = [];
  const note = (event) => paints.push(event.detail);
  root.addEventListener("explorer:paint", note);
  const first = Number(slider.min), span = Number(slider.max) - first;
  for (let i = 0; i < count; i++) {
    slider.value = first + Math.round((span * i) / (count - 1));
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    // The frame's own time stamp: the clock would also measure when this callback's turn came.
    stamps.push(await new Promise(requestAnimationFrame));
  }
  root.removeEventListener("explorer:paint", note);
  return { paints, stamps };
}"""
MISSED = 25.0
"""Milliseconds between two frames from which at least one was missed at 60 a second."""


@dataclass(frozen=True, slots=True)
class Scrub:
    paint_p50: float
    """Median time of the explorer's own painting, milliseconds."""
    paint_p95: float
    missed: float
    """Share of frames that came late."""
    paints: int


def scrub(page: Any, view: str, *, count: int = 500, rounds: int = 3) -> Scrub:
    """Move the step slider once a frame from one end to the other; of some rounds the one that missed fewest frames.

    Args:
        view: accessible name of the explorer.
        count: steps of the slider that are visited.
    """
    best: Scrub | None = None
    for _ in range(rounds):
        result = page.evaluate(_SCRUB, {"view": view, "count": count})
        gaps = np.diff(result["stamps"])
        paints = np.array(result["paints"])
        one = Scrub(
            float(np.percentile(paints, 50)),
            float(np.percentile(paints, 95)),
            float((gaps > MISSED).mean()),
            len(paints),
        )
        if best is None or (one.missed, one.paint_p95) < (best.missed, best.paint_p95):
            best = one
    assert best is not None
    return best
