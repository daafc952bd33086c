"""Widgets for notebooks: hand-written ESM, no build step, nothing loaded from elsewhere."""

from __future__ import annotations

from prefix_rft_lab.widgets.schedule import ScheduleScrubber

__all__ = ["ScheduleScrubber"]
