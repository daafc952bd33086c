"""Scrub the prefix-ratio schedule: the window over the steps, and one demonstration split at the chosen step."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from prefix_rft_lab import schedules
from prefix_rft_lab.config import ConfigError, RunConfig

_FOLDER = Path(__file__).parent


class ScheduleScrubber(anywidget.AnyWidget):
    """A slider over training steps; scrubbing happens in the browser and works in a saved notebook without a kernel.

    Args:
        config: the run whose ``prefix`` section and ``rl.steps`` are shown.
        demonstration: the texts of a demonstration's tokens, in order.

    Raises:
        ConfigError: an empty demonstration.
    """

    _esm = _FOLDER / "schedule.js"
    _css = _FOLDER / "schedule.css"
    window: traitlets.List = traitlets.List(help="[low, mean, high] prefix ratio of each step, fractions").tag(
        sync=True
    )
    tokens = traitlets.List(traitlets.Unicode(), help="texts of the demonstration's tokens").tag(sync=True)
    lengths: traitlets.List = traitlets.List(help="[low, mean, high] prefix length of each step, tokens").tag(sync=True)
    step = traitlets.Int(0, help="the step that is shown").tag(sync=True)

    def __init__(self, config: RunConfig, demonstration: Sequence[str], **kwargs: Any) -> None:
        if not demonstration:
            raise ConfigError("demonstration = [] has no tokens to split; give the texts of its tokens")
        window, lengths = [], []
        for step in range(max(config.rl.steps, 1)):
            low, high = schedules.ratio_window(config.prefix, step)
            ratios = [low, schedules.mean_ratio(config.prefix, step), high]
            window.append([round(ratio, 4) for ratio in ratios])
            lengths.append(
                [schedules.prefix_length(ratio, len(demonstration), config.prefix.min_tokens) for ratio in ratios]
            )
        super().__init__(window=window, lengths=lengths, tokens=list(demonstration), **kwargs)
        self._config = config

    def summary(self) -> str:
        """The schedule in one line of text, for readers without the widget."""
        first, last = self.window[0], self.window[-1]
        return (
            f"Prefix-ratio window {first[0]:.2f}-{first[2]:.2f} at step 0, {last[0]:.2f}-{last[2]:.2f} at step "
            f"{len(self.window) - 1}; of a demonstration of {len(self.tokens)} tokens the mean prefix is "
            f"{self.lengths[0][1]} tokens at first and {self.lengths[-1][1]} at last"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view, with a picture and a line of text for GitHub, converters and untrusted notebooks."""
        from prefix_rft_lab import plots

        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        png = io.BytesIO()
        plots.schedule(self._config).savefig(png, format="png", dpi=110)

        data = {**data, "image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": self.summary()}
        return data, metadata
