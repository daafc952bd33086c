"""What one training step did to the policy: figures over :class:`prefix_rft_lab.lab.again.Step`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prefix_rft_lab.plots.base import OKABE_ITO, RunFigure, finish, kit_style, new_figure

if TYPE_CHECKING:
    from prefix_rft_lab.lab.again import Outcome, Step


@kit_style
def update_effect(step: Step, other: Outcome | None = None, *, name: str = "otherwise") -> RunFigure:
    """What the update did to right rows, wrong rows, followed demonstrations and held-out answers, in nats per token.

    A bar is the change of the mean log-probability; the line across it is the part that momentum alone would have made.

    Args:
        step: of :func:`prefix_rft_lab.again`.
        other: the step otherwise, drawn beside it.
        name: what ``other`` is called.
    """
    data = step.what() if other is None else step.what(other)
    places = np.arange(len(data))[::-1]
    both = other is not None
    colours = {"change": OKABE_ITO["blue"], "otherwise": OKABE_ITO["orange"]}
    handles = [
        Patch(color=colours["change"], label="as it was"),
        *([Patch(color=colours["otherwise"], label=name)] if both else []),
        Line2D([], [], color="black", lw=2, label="carried over by momentum"),
    ]
    figure, grid = new_figure(
        8.0, 0.62 * len(data) + 0.7, title=f"What step {step.number} did", note=step.note, legend=handles
    )
    axes = grid[0, 0]
    height = 0.36 if both else 0.6
    for column, shift in (("change", 0.19 if both else 0.0), ("otherwise", -0.19)):
        if column in data:
            axes.barh(places + shift, data[column], height=height, color=colours[column])
    for place, value in zip(places, data["carried_over"], strict=True):
        axes.plot([value, value], [place - 0.4, place + 0.4], color="black", lw=2)
    axes.axvline(0, color="#595959", lw=0.8)
    axes.set_yticks(places, [f"{one.tokens_of} ({one.tokens} tokens)" for one in data.itertuples()], fontsize=9)
    axes.set_xlabel("change of the mean log-probability (nats per token)")
    axes.grid(axis="y", visible=False)
    return finish(figure, data, f"{step.sentence()} {step.note}")
