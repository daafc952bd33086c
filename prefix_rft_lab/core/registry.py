"""Ideas by name: methods, schedules, estimators, keep rules, rewards and the like, the kit's and a user's alike.

A config names an idea with a string; a :class:`Registry` holds what it names::

    @schedules.register("steps", version="1")
    def my_window(step, settings): ...

A user's idea is part of the identity of a run that uses it, by name and version. Code cannot be compared completely (it
reads globals, helpers, defaults), so a run with an idea that names no version is trained anew and never returned.

Worker processes know the ideas of modules that they can import: ``imports=["my_ideas"]`` in the config, ``--import
my_ideas``, or the entry point group ``prefix_rft_lab.ideas`` of an installed package.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from prefix_rft_lab.core.config import SHOWN_ELSEWHERE, ConfigError, RunConfig

T = TypeVar("T")
V = TypeVar("V")

GROUP = "prefix_rft_lab.ideas"
"""Entry point group of installed packages; each entry names a module that registers ideas."""

UNVERSIONED = "no version"
"""Stands in a run's identity for an idea that names no version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where an idea comes from."""

    module: str
    """The module that registered it."""
    version: str | None
    """What the user calls this state of it; None without one, and for the kit's."""

    @property
    def is_kit(self) -> bool:
        return self.module.partition(".")[0] == "prefix_rft_lab"


class Registry(dict[str, T]):
    """Name -> idea of one kind. ``registry[name] = idea`` and ``registry.register`` do the same.

    An idea that uses others by name has a method ``uses(config)``, which yields (registry, name) of each.

    Args:
        what: the kind in words, for sentences.
        field: dotted field of the config that names one, or "" where none does.
        names: the names that a config asks for; by default the value of ``field``.
    """

    def __init__(self, what: str, field: str = "", names: Callable[[RunConfig], Iterable[str]] | None = None) -> None:
        super().__init__()
        self.what = what
        self.field = field
        self.entries: dict[str, Entry] = {}
        self._names = names or (lambda config: [value_of(config, field)] if field else [])
        REGISTRIES.append(self)

    def register(self, name: str, version: str | None = None) -> Callable[[V], V]:
        """A decorator that puts an idea under a name.

        Raises:
            ConfigError: another idea has the name; one that the same notebook or module registered is replaced.
        """
        module = sys._getframe(1).f_globals.get("__name__", "__main__")

        def put(idea: V) -> V:
            self._put(name, idea, Entry(module=module, version=version))
            return idea

        return put

    def __setitem__(self, name: str, idea: T) -> None:
        module = sys._getframe(1).f_globals.get("__name__", "__main__")
        self._put(name, idea, Entry(module=module, version=getattr(idea, "version", "") or None))

    def _put(self, name: str, idea: Any, entry: Entry) -> None:
        before = self.entries.get(name) if name in self else None
        # The cell of a notebook, or a module that is read again, brings a new object under the old name.
        again = before is not None and before.module == entry.module and _label(self[name]) == _label(idea)
        if before is not None and self[name] is not idea and not again and not _is_notebook(entry, before):
            raise ConfigError(
                f"{self.what} {name!r} is the name of another idea, of {_place(before)}; give yours another name"
            )
        super().__setitem__(name, idea)
        self.entries[name] = entry

    def find(self, name: str) -> T:
        """The idea of that name.

        Raises:
            ConfigError: there is none; the message lists the known ones, and the nearest.
        """
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1, cutoff=0.5)
            nearest = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{self.field or self.what} = {name!r} is not known; use one of {', '.join(self)}{nearest}"
            )
        return self[name]

    def names(self, config: RunConfig) -> Iterator[str]:
        """The names that a config asks for."""
        yield from self._names(config)


REGISTRIES: list[Registry[Any]] = []
"""All there are, as their modules are imported."""


def used(config: RunConfig) -> dict[tuple[str, str], Entry]:
    """(field or kind, name) -> entry of each idea that the run of a config uses.

    Raises:
        ConfigError: a name is not known.
    """
    found: dict[tuple[str, str], Entry] = {}
    waiting = [(one, name) for one in REGISTRIES for name in one.names(config)]
    while waiting:
        registry, name = waiting.pop()
        idea, key = registry.find(name), (registry.field or registry.what, name)
        if key not in found:
            found[key] = registry.entries[name]
            waiting += getattr(idea, "uses", lambda config: ())(config)
    return found


def with_ideas(config: RunConfig) -> RunConfig:
    """The config with the versions of the user's ideas that its run uses, which name the run with it (``ideas``), and with the
    modules that they come from, so that other processes know them (``imports``).

    Raises:
        ConfigError: a name is not known, or a module cannot be imported.
    """
    load(config.imports)
    own = {key: entry for key, entry in sorted(used(config).items()) if not entry.is_kit}
    versions = {
        " ".join(key): entry.version or UNVERSIONED for key, entry in own.items() if key[0] not in SHOWN_ELSEWHERE
    }
    modules = dict.fromkeys([*config.imports, *(entry.module for entry in own.values() if not _hidden(entry.module))])
    if versions == config.ideas and tuple(modules) == config.imports:
        return config
    return config.replace(ideas=versions, imports=list(modules))


def unversioned(config: RunConfig) -> list[str]:
    """The user's ideas in a config of :func:`with_ideas` that name no version, in words."""
    return [name for name, version in config.ideas.items() if version == UNVERSIONED]


def check_importable(config: RunConfig) -> None:
    """Refuse ideas that no other process can know.

    Raises:
        ConfigError: an idea was registered in a notebook or in the script that runs.
    """
    for (kind, name), entry in used(config).items():
        if not entry.is_kit and _hidden(entry.module):
            raise ConfigError(
                f"{kind} = {name!r} was registered in {_place(entry)}, which worker processes cannot import; put it into "
                "a file such as my_ideas.py and import it: 'import my_ideas', --import my_ideas, or imports = [my_ideas]"
            )


def load(imports: Iterable[str] = ()) -> None:
    """Import modules that register ideas, and those of installed packages (:data:`GROUP`); each once.

    Raises:
        ConfigError: a module cannot be imported.
    """
    points = {point.module: f"entry point {point.name}" for point in _entry_points()}
    for name in dict.fromkeys([*points, *imports]):
        if name in sys.modules:
            continue
        # At the end, so that a file there shadows no installed module.
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        try:
            importlib.import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{points.get(name, 'imports')} = {name!r} cannot be imported ({type(error).__name__}: {error}); run where "
                f"{name}.py lies, or put its folder on PYTHONPATH"
            ) from error


def value_of(config: Any, field: str) -> Any:
    """The value of a dotted field."""
    for part in field.split("."):
        config = getattr(config, part)
    return config


@cache
def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


def _hidden(module: str) -> bool:
    """Whether no other process can import a module by that name."""
    return module == "__main__" or getattr(sys.modules.get(module), "__file__", None) is None


def _is_notebook(entry: Entry, before: Entry) -> bool:
    return entry.module == before.module == "__main__" and not hasattr(sys.modules["__main__"], "__file__")


def _label(idea: Any) -> str:
    """What an idea is called where it was written; ideas that are values have no such name."""
    return getattr(idea, "__qualname__", type(idea).__qualname__)


def _place(entry: Entry) -> str:
    if entry.is_kit:
        return "the kit"
    return "this notebook or script" if entry.module == "__main__" else f"module {entry.module!r}"
