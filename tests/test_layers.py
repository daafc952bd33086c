"""The layers hold by themselves: a folder imports only from those below it, and no module imports itself in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "prefix_rft_lab"

LAYERS = (
    ("core",),
    ("algorithm",),
    ("data", "runs"),
    ("models",),
    ("training",),
    ("experiments", "lab"),
    ("analysis",),
    ("plots",),
    ("widgets", "report"),
    ("tools",),
    ("reproduce",),
    ("cli",),
    ("__main__",),
)
"""Lowest first. Names of one floor do not import from one another."""
FLOOR = {name: number for number, floor in enumerate(LAYERS) for name in floor}


def modules(package: Path) -> dict[str, Path]:
    """Dotted path below the package -> file."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts != ("__init__",):
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path], *, inside_functions: bool) -> set[str]:
    """Modules of the package that a file imports, by their dotted path below it."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if inside_functions else tree.body
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, below = name.partition(".")
            while head == "prefix_rft_lab" and below:
                if below in known:
                    found.add(below)
                    break
                below = below.rpartition(".")[0]
    return found


def breaches(package: Path) -> list[str]:
    """Upward and sideways imports, each with its file."""
    known, found = modules(package), []
    for name, path in sorted(known.items()):
        own = name.partition(".")[0]
        if own not in FLOOR:
            found.append(f"{name}: {own} stands on no floor; name it in LAYERS")
            continue
        for other in sorted(imports(path, known, inside_functions=True)):
            theirs = other.partition(".")[0]
            if theirs != own and FLOOR.get(theirs, 99) >= FLOOR[own]:
                found.append(f"{path.relative_to(package)} imports {other}, which does not lie below {own}")
    return found


def circles(package: Path) -> list[str]:
    """Modules from which imports lead back to themselves, function-level imports included."""
    known = modules(package)
    below = {name: imports(path, known, inside_functions=True) - {name} for name, path in known.items()}
    while True:
        free = {name for name, used in below.items() if not used}
        if not free:
            return sorted(below)
        below = {name: used - free for name, used in below.items() if name not in free}


def test_every_folder_imports_only_from_those_below_it() -> None:
    assert breaches(PACKAGE) == []


def test_no_circles() -> None:
    left = circles(PACKAGE)
    # What only leads into a circle, and is not led back to, is left too; name all, the circle is among them.
    assert left == []


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("algorithm/losses.py", "from prefix_rft_lab.training import trainer", "algorithm/losses.py imports training.trainer"),
        ("data/answers.py", "def f():\n    from prefix_rft_lab.runs.run import Run", "data/answers.py imports runs.run"),
    ],
)  # fmt: skip
def test_an_injected_upward_import_is_named_with_its_file(tmp_path: Path, file: str, line: str, named: str) -> None:
    copy = tmp_path / "prefix_rft_lab"
    for path in PACKAGE.rglob("*.py"):
        (copy / path.relative_to(PACKAGE)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(PACKAGE)).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    with (copy / file).open("a", encoding="utf-8") as one:
        one.write(f"\n{line}\n")
    assert any(named in sentence for sentence in breaches(copy))


def test_short_paths_name_the_same_modules() -> None:
    import prefix_rft_lab
    import prefix_rft_lab.stats
    import prefix_rft_lab.tasks.chains
    from prefix_rft_lab import methods
    from prefix_rft_lab.algorithm import methods as longer
    from prefix_rft_lab.analysis import stats
    from prefix_rft_lab.data import chains
    from prefix_rft_lab.methods import METHODS

    assert prefix_rft_lab.stats is stats
    assert stats.__spec__ is not None and stats.__spec__.name == "prefix_rft_lab.analysis.stats"
    assert prefix_rft_lab.tasks.chains is chains
    assert methods is longer and METHODS is longer.METHODS
    with pytest.raises(ModuleNotFoundError, match=r"prefix_rft_lab\.nothing"):
        import prefix_rft_lab.nothing
