"""Explorers for notebooks: hand-written ESM, no build step, nothing loaded from elsewhere."""

from __future__ import annotations

from prefix_rft_lab.widgets.runs import RunExplorer
from prefix_rft_lab.widgets.schedule import ScheduleExplorer
from prefix_rft_lab.widgets.step import StepExplorer
from prefix_rft_lab.widgets.tokens import TokenExplorer

__all__ = ["RunExplorer", "ScheduleExplorer", "StepExplorer", "TokenExplorer"]
