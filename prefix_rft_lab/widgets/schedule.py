"""Feel and edit the prefix-ratio schedule before training: window, density, and a demonstration split at a step."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import traitlets

from prefix_rft_lab import plots
from prefix_rft_lab.algorithm import schedules
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.widgets.base import Explorer, script, style

FIELDS = (
    "schedule",
    "high",
    "low",
    "decay_steps",
    "delay_steps",
    "warmup_ratio",
    "alpha",
    "beta",
    "min_tokens",
)
"""Fields of the config's ``prefix`` section that the explorer edits."""


class ScheduleExplorer(Explorer):
    """The window of prefix ratios over training; edited by dragging or typing, and read back as a config.

    ``explorer.config`` is the config with the edited ``prefix`` section, for :func:`prefix_rft_lab.train`; assigning
    to it shows another one. Single fields are traits of the same names: ``explorer.low = 0.1``.

    Args:
        config: the run whose ``prefix`` section is edited, over ``rl.steps`` steps.
        demonstrations: texts of the tokens of one demonstration, or of several, to be split at the chosen step.
        overlays: name -> config whose schedule is drawn for comparison.
        step: the step that is shown first.

    Raises:
        ConfigError: a demonstration without tokens or not cut into tokens; a value that the config refuses.
    """

    _esm = script("schedule")
    _css = style("schedule")
    schedule = traitlets.Unicode("cosine", help="how the window moves").tag(sync=True)
    kinds: traitlets.List = traitlets.List(help="schedules that can be chosen").tag(sync=True)
    windows: traitlets.Dict = traitlets.Dict(help="schedule of yours -> [low, high] at each step").tag(sync=True)
    high = traitlets.Float(help="upper end, share of the demonstration").tag(sync=True)
    low = traitlets.Float(help="lower end after the decay").tag(sync=True)
    decay_steps = traitlets.Int(1, help="steps of the decay").tag(sync=True)
    delay_steps = traitlets.Int(help="steps before the decay").tag(sync=True)
    warmup_ratio = traitlets.Float(help="length of the rise from 0, share of the decay").tag(sync=True)
    alpha = traitlets.Float(1.0, help="first shape of the Beta distribution").tag(sync=True)
    beta = traitlets.Float(1.0, help="second shape of the Beta distribution").tag(sync=True)
    min_tokens = traitlets.Int(help="shortest prefix, tokens").tag(sync=True)
    step = traitlets.Int(0, help="the step that is shown").tag(sync=True)
    demonstration = traitlets.Int(0, help="index of the demonstration that is shown").tag(sync=True)
    steps = traitlets.Int(1, help="steps of the run").tag(sync=True)
    demonstrations: traitlets.List = traitlets.List(help="texts of the tokens of each demonstration").tag(sync=True)
    overlays: traitlets.List = traitlets.List(help="named schedules that are drawn too").tag(sync=True)
    original: traitlets.Dict = traitlets.Dict(help="the fields as they were given").tag(sync=True)

    def __init__(
        self,
        config: RunConfig,
        demonstrations: Sequence[Sequence[str]] | Sequence[str] = (),
        *,
        overlays: Mapping[str, RunConfig] | None = None,
        step: int = 0,
    ) -> None:
        fields = _fields(config)
        self._config = config
        super().__init__(
            **fields,
            kinds=[*schedules.SCHEDULES.entries],
            windows=_windows(config),
            original=fields,
            steps=max(config.rl.steps, 1),
            step=min(max(step, 0), max(config.rl.steps - 1, 0)),
            demonstrations=_demonstrations(demonstrations),
            overlays=[
                {"name": name, **_fields(other), "windows": _windows(other)} for name, other in (overlays or {}).items()
            ],
        )
        self.observe(lambda _: self._draw_own(), [*FIELDS, "steps"])

    @traitlets.validate("schedule")
    def _known_schedule(self, proposal: Any) -> str:
        if proposal["value"] not in schedules.SCHEDULES.entries:
            raise traitlets.TraitError(f"schedule = {proposal['value']!r} is not one of {', '.join(self.kinds)}")
        return str(proposal["value"])

    def _draw_own(self) -> None:
        """Compute the windows of the user's schedules again, whose settings were edited."""
        if self.windows:
            # Fields that do not fit together for a moment draw nothing new.
            with contextlib.suppress(ConfigError):
                self.windows = _windows(self.config)

    @property
    def config(self) -> RunConfig:
        """The config as edited.

        Raises:
            ConfigError: the fields, set one by one from Python, do not fit together.
        """
        changed = [name for name in FIELDS if getattr(self, name) != self.original[name]]
        return self._config.replace(**{f"prefix.{name}": getattr(self, name) for name in changed})

    @config.setter
    def config(self, config: RunConfig) -> None:
        self._config = config
        fields = _fields(config)
        with self.hold_sync():
            self.set_trait("original", fields)
            for name, value in fields.items():
                self.set_trait(name, value)
            self.steps = max(config.rl.steps, 1)
            self.step = min(self.step, self.steps - 1)

    def summary(self) -> str:
        prefix = schedules.of_run(self.config)
        last = self.steps - 1
        first_window, last_window = (schedules.ratio_window(prefix, step) for step in (0, last))
        text = (
            f"Prefix-ratio schedule ({prefix.schedule}): window {first_window[0]:.2f}-{first_window[1]:.2f} at "
            f"step 0, {last_window[0]:.2f}-{last_window[1]:.2f} at step {last}"
        )
        if not self.demonstrations:
            return text
        count = len(self.demonstrations[self.demonstration])
        lengths = [
            schedules.prefix_length(schedules.mean_ratio(prefix, step), count, prefix.min_tokens) for step in (0, last)
        ]
        return (
            f"{text}; of a demonstration of {count} tokens the mean ratio gives {lengths[0]} tokens at first and "
            f"{lengths[1]} at last"
        )

    def picture(self) -> plots.RunFigure:
        return plots.schedule(self.config)


def _windows(config: RunConfig) -> dict[str, list[tuple[float, float]]]:
    """The windows of every registered schedule that is not the kit's, [low, high] at each step."""
    prefix, steps = schedules.of_run(config), range(max(config.rl.steps, 1))
    names = [name for name, entry in schedules.SCHEDULES.entries.items() if not entry.is_kit]
    return {
        name: [schedules.ratio_window(prefix.model_copy(update={"schedule": name}), step) for step in steps]
        for name in names
    }


def _fields(config: RunConfig) -> dict[str, Any]:
    prefix = schedules.of_run(config)
    return {name: getattr(prefix, name) for name in FIELDS}


def _demonstrations(given: Sequence[Sequence[str]] | Sequence[str]) -> list[list[str]]:
    if isinstance(given, str) or any(isinstance(one, str) and i == 0 for i, one in enumerate(given)):
        if isinstance(given, str):
            raise ConfigError(f"demonstrations = {given[:40]!r} is one text; give the texts of its tokens")
        given = [cast(Sequence[str], given)]
    out = [list(one) for one in given]
    for i, tokens in enumerate(out):
        if isinstance(given[i], str) or not all(isinstance(token, str) for token in tokens):
            raise ConfigError(
                f"demonstrations[{i}] = {given[i]!r:.40} is not a list of texts; give those of its tokens"
            )
        if not tokens:
            raise ConfigError(f"demonstrations[{i}] = [] has no tokens to split; give the texts of its tokens")
    return out
