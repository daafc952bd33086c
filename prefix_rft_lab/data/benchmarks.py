"""The benchmarks of the paper, and GSM8K: where they lie and how often each problem is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefix_rft_lab.core.config import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A set of test problems."""

    title: str
    hub: str
    """The set on the Hub, as :mod:`prefix_rft_lab.data.readers` reads it."""
    files: tuple[str, ...]
    """Patterns of local files, tried in this order."""
    k: int = 1
    """Samples of each problem: avg@32 on the small sets, pass@1 on the others (section 4 of the paper)."""


def _small(title: str, hub: str, *files: str) -> Benchmark:
    return Benchmark(title=title, hub=hub, files=files, k=32)


def _large(title: str, hub: str, *files: str) -> Benchmark:
    return Benchmark(title=title, hub=hub, files=files)


BENCHMARKS = {
    "aime24": _small("AIME 2024", "HuggingFaceH4/aime_2024:default:train", "aime24*", "aime_2024*", "aime2024*"),
    "aime25": _small("AIME 2025", "math-ai/aime25:default:test", "aime25*", "aime_2025*", "aime2025*"),
    "amc23": _small("AMC 2023", "math-ai/amc23:default:test", "amc23*", "amc_2023*", "amc2023*"),
    "math500": _large("MATH-500", "HuggingFaceH4/MATH-500:default:test", "math500*", "math_500*", "MATH-500*"),
    "minerva": _large("Minerva", "math-ai/minervamath:default:test", "minerva*"),
    "olympiadbench": _large("OlympiadBench", "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train", "olympiadbench*"),
    "gsm8k": _large("GSM8K", "openai/gsm8k:main:test", "gsm8k_test*", "gsm8k-test*"),
}
"""Name -> benchmark; the first six are the paper's."""

PAPER = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")
_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".gz")


def locate(names: str, folder: str | None = None) -> dict[str, str]:
    """Name -> source of the benchmarks in a comma-separated list.

    Each is ``name`` or ``name=FILE``; ``paper`` stands for the paper's six. Without a file, it is looked for in
    ``folder``, and without a folder taken from the Hub.

    Raises:
        ConfigError: an unknown name, or a folder without the file.
    """
    found: dict[str, str] = {}
    for item in names.split(","):
        name, _, file = item.strip().partition("=")
        for each in PAPER if name == "paper" and not file else (name,):
            if each not in BENCHMARKS:
                raise ConfigError(
                    f"benchmark {each!r} is not known; use {', '.join(BENCHMARKS)} or paper, or NAME=FILE for a file"
                )
            found[each] = file or (BENCHMARKS[each].hub if folder is None else _in_folder(each, Path(folder)))
    return found


def _in_folder(name: str, folder: Path) -> str:
    for pattern in BENCHMARKS[name].files:
        if files := sorted(path for path in folder.expanduser().glob(pattern) if path.suffix in _SUFFIXES):
            return str(files[0])
    raise ConfigError(
        f"benchmark {name!r} is not in {str(folder)!r}; put {' or '.join(BENCHMARKS[name].files)} (JSONL, parquet or CSV) "
        f"there, or write {name}=FILE"
    )
