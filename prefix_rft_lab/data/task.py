"""A task: problems, what a response to them is worth, and how they are put to the policy, under one name.

::

    task = Task(problems=frame, reward=exact, instruction=" Answer with one word.", name="capitals")
    run = train(preset("tiny", method="prefix_rft"), task=task)

A named task travels by its name (``data.task``) into workers, sweeps and papermill, if it is made in a module that these
import (``imports``). Its version is computed from all that it holds, so that other problems are another run; a reward has a
version of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefix_rft_lab.core import registry
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import Problem
from prefix_rft_lab.data import readers
from prefix_rft_lab.data.rewards import REWARDS, Reward

tasks: registry.Registry[Task] = registry.Registry(
    "task", "data.task", lambda config: [config.data.task] if config.data.task else []
)
"""Name -> task, of those that have one."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run trains on and for; see the module's docstring.

    Raises:
        ConfigError: problems that cannot be read, or a name that another task has.

    >>> rows = [{"problem": "The capital of France?", "answer": "Paris"}, {"problem": "Of Peru?", "answer": "Lima"}]
    >>> Task(problems=rows, reward={"exact": 1, "format": 0.1}).fields["data.reward"]
    '1 * exact + 0.1 * format'
    """

    problems: Any
    """Whatever ``train(problems=...)`` takes: Problems, dicts, a frame, a ``datasets.Dataset``, a path, a Hub name."""
    reward: str | Callable[..., Any] | Mapping[Any, float] = "math_verify"
    """A registered name, a function ``(response, problem) -> float``, or several with weights: ``{"math_verify": 1, polite: 0.2}``."""
    solved: float | None = None
    """Score from which a response counts as solved; the highest possible one if not given."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """As ``data.columns``."""
    template: str | None = None
    """As ``model.template``; that of the config if not given, as the two below."""
    system_prompt: str | None = None
    instruction: str | None = None
    name: str = ""
    version: str = ""
    """Said beside the computed one, for readers."""

    def __post_init__(self) -> None:
        kept = readers.keep(self.problems, Path(tempfile.gettempdir()) / "prefix_rft_lab")
        object.__setattr__(self, "_kept", kept)
        object.__setattr__(self, "_reward", _named(self.reward))
        if self.name:
            told = json.dumps({**self.fields, "data.problems": Path(kept).name}, sort_keys=True)
            version = f"{self.version} {hashlib.sha256(told.encode()).hexdigest()[:12]}".strip()
            tasks._put(self.name, self, registry.Entry(module=_caller(), version=version))

    @property
    def fields(self) -> dict[str, Any]:
        """Dotted fields of a config that the task sets."""
        found = {
            "data.problems": self._kept,  # type: ignore[attr-defined]
            "data.reward": self._reward,  # type: ignore[attr-defined]
            "data.solved": self.solved,
            "data.columns": dict(self.columns),
            "data.task": self.name,
        }
        model = {"template": self.template, "system_prompt": self.system_prompt, "instruction": self.instruction}
        return found | {f"model.{name}": value for name, value in model.items() if value is not None}


def from_verifiers(
    taskset: Any,
    *,
    name: str,
    solved: float,
    version: str | None = None,
    demonstrations: Callable[[Any], Sequence[str]] = lambda data: getattr(data, "demonstrations", ()),
    **fields: Any,
) -> Task:
    """A taskset of the ``verifiers`` library (0.4, extra ``verifiers``) as a task: its prompts, scored by its own rewards.

    Args:
        name: of the task, and of the reward that asks the taskset.
        solved: score from which a response counts as solved; the rewards of a taskset have no highest value.
        version: of the taskset's rewards; without one, runs are trained anew.
        demonstrations: worked solutions of a task's data, where there are any.
        fields: further ones of :class:`Task`.

    Raises:
        ConfigError: a taskset without end, or tasks that need tools or a container: a response here is one turn of text.
    """
    import verifiers.v1 as vf
    from verifiers.v1.graph import MessageNode

    if not taskset.bounded:
        raise ConfigError(f"taskset = {type(taskset).__name__} has no end; give taskset.take(n)")
    known = {f"{name}-{number}": task for number, task in enumerate(taskset)}
    for task in known.values():
        if task.NEEDS_CONTAINER or task.toolsets(task.config) or not task.data.prompt_text:
            raise ConfigError(
                f"taskset = {type(taskset).__name__} has tasks with tools, a container or no prompt; give one whose tasks are "
                "answered in one turn of text"
            )

    async def judged(response: str, problem: Problem) -> float:
        task = known[problem.id]
        asked = MessageNode(message=vf.UserMessage(content=task.data.prompt_text))
        answered = MessageNode(parent=0, message=vf.AssistantMessage(content=response), sampled=True)
        told = vf.TraceTask.model_construct(type=type(task).__name__, data=task.data)
        start: dict[str, Any] = {"rewards": {}, "metrics": {}, "info": {}, "root_reply": response}
        trace = vf.Trace.model_construct(task=told, nodes=[asked, answered], **start)
        await task.score(trace)
        return trace.reward

    reward = Reward(function=judged, low=-math.inf, high=math.inf)
    REWARDS._put(name, reward, registry.Entry(module=_caller(), version=version))
    system = {task.data.system_prompt for task in known.values()}
    if len(system) == 1 and (prompt := system.pop()):
        fields.setdefault("system_prompt", prompt)
    rows = [
        Problem(
            id=id,
            prompt=task.data.prompt_text,
            answer=str(getattr(task.data, "answer", None) or "(as its task judges)"),
            demonstrations=tuple(demonstrations(task.data)),
        )
        for id, task in known.items()
    ]
    return Task(problems=rows, reward=name, solved=solved, name=name, **fields)


def _caller() -> str:
    """The module outside of the kit that asked for this."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "prefix_rft_lab":
        frame = frame.f_back
    return frame.f_globals.get("__name__", "__main__")


def with_task(
    config: RunConfig, task: Task | None = None, problems: Any = None, folder: str | Path | None = None
) -> RunConfig:
    """The config with what a task sets: the one given, or that of ``data.task``; and with problems that are given in Python.

    Args:
        folder: keeps the problems, by default one for temporary files.

    Raises:
        ConfigError: both a task and problems, a task that is not known, or a module of ``imports`` that cannot be imported.
    """
    registry.load(config.imports)
    if task is None and config.data.task:
        task = tasks.find(config.data.task)
    if task is not None and problems is not None:
        raise ConfigError(
            f"problems = {type(problems).__name__} and a task are given, and a task brings its own; leave one out"
        )
    folder = Path(folder or Path(tempfile.gettempdir()) / "prefix_rft_lab")
    if task is None:
        return config if problems is None else config.replace(**{"data.problems": readers.keep(problems, folder)})
    fields = task.fields
    kept, now = Path(fields["data.problems"]), Path(config.data.problems)
    if now.name == kept.name and now.is_file():
        fields["data.problems"] = config.data.problems  # in another process, or in an earlier call
    elif kept.is_file() and kept.parent == Path(tempfile.gettempdir()) / "prefix_rft_lab" != folder:
        folder.mkdir(parents=True, exist_ok=True)
        fields["data.problems"] = str(shutil.copy(kept, folder / kept.name))
    return config.replace(**fields)


def _named(reward: Any) -> str:
    """``data.reward`` of rewards given as names or functions; a function that has no name yet is registered under its own."""
    if isinstance(reward, Mapping):
        return " + ".join(f"{weight:g} * {_named(one)}" for one, weight in reward.items())
    if isinstance(reward, str):
        return reward
    for name, known in REWARDS.items():
        if known.function is reward:
            return name
    if not callable(reward):
        raise ConfigError(
            f"reward = {reward!r} is no reward; give a registered name, a function, or a mapping to weights"
        )
    name = getattr(reward, "__name__", type(reward).__name__)
    REWARDS._put(name, Reward(function=reward), registry.Entry(module=reward.__module__, version=None))
    return name
