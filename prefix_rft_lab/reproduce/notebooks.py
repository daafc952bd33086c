"""Notebooks without a browser: parameters that are checked, a kernel that is ours, and an end that can be trusted.

A notebook starts with a cell tagged ``parameters`` whose lines read ``name: type = literal  # help``. Papermill puts the
given values into a cell after it; the next cell checks them where they are used, and the last one says that all was
run::

    experiment = experiment_parameters(profile=profile, out=out)     # after the parameters
    ...
    finish(experiment.out, "02_train")                               # the last line of the notebook

Papermill alone would run a misspelt parameter's default, and would call a notebook finished whose kernel was killed or
that left by ``sys.exit(0)``. So :func:`run_notebook` refuses unknown names, wrong types and values out of range before a
kernel starts, and takes only the file that ``finish`` writes as a sign of success.

A help text may state what is allowed, and is then held to it: ``in [1, 8]`` for numbers, ``one of: a, b, c`` for text.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import write_json
from prefix_rft_lab.core.terminal import shown
from prefix_rft_lab.experiments.pool import THREAD_VARIABLES, TICKET
from prefix_rft_lab.runs.run import Run, directory_of, load_all

SECONDS_LIMIT = 12 * 3600.0
"""Wall-clock limit of a notebook, unless another is given: against hanging, not against work."""

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_RANGE = re.compile(r"\bin \[(-?[\d.]+(?:e-?\d+)?), (-?[\d.]+(?:e-?\d+)?)\]")
_CHOICES = re.compile(r"\bone of: ([^\s,]+(?:, [^\s,]+)*)")


# ---------------------------------------------------------------------- parameters


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter as a notebook declares it."""

    type: type
    default: Any
    help: str = ""

    def checked(self, name: str, value: Any) -> Any:
        """The value in the declared type.

        Raises:
            ConfigError: another type, or outside what the help text allows.
        """
        if self.type is float and type(value) is int:
            value = float(value)
        if type(value) is not self.type:
            raise ConfigError(
                f"{name} = {value!r} is a {type(value).__name__}; give {self.type.__name__}, such as {self.default!r}"
            )
        if isinstance(value, int | float) and (found := _RANGE.search(self.help)):
            low, high = map(float, found.groups())
            if not low <= value <= high:
                raise ConfigError(f"{name} = {value!r} is out of range; choose it in [{found[1]}, {found[2]}]")
        if isinstance(value, str) and (found := _CHOICES.search(self.help)) and value not in found[1].split(", "):
            raise ConfigError(f"{name} = {value!r} is not known; use one of {found[1]}")
        return value


def parameters_of(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares, by name; none if no cell has the tag ``parameters``.

    Raises:
        ConfigError: not a notebook, or a line of the cell that isn't ``name: type = literal  # help``.
    """
    path = Path(notebook)
    for cell in _read(path)["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return _declared(_text(cell["source"]), path.name)
    return {}


def _declared(source: str, where: str) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    lines = source.splitlines()
    try:
        nodes = ast.parse(source).body
    except SyntaxError as error:
        raise ConfigError(f"the parameters of {where} are not Python (line {error.lineno}); correct the cell") from None
    for node in nodes:
        line = lines[node.lineno - 1]
        try:
            if not isinstance(node, ast.AnnAssign) or node.value is None or node.lineno != node.end_lineno:
                raise ValueError
            if not isinstance(node.target, ast.Name) or not isinstance(node.annotation, ast.Name):
                raise ValueError
            kind = _TYPES[node.annotation.id]
            default = ast.literal_eval(node.value)
        except (KeyError, ValueError):
            raise ConfigError(
                f"{line.strip()!r} in the parameters of {where} is not understood; write 'name: type = literal  # help' "
                f"with one of the types {', '.join(_TYPES)}"
            ) from None
        comment = line.encode()[node.end_col_offset :].decode().strip()
        parameter = Parameter(kind, default, comment.removeprefix("#").strip())
        found[node.target.id] = Parameter(kind, parameter.checked(node.target.id, default), parameter.help)
    return found


def check_parameters(expected: Mapping[str, Parameter], given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """All expected parameters: the given values, checked, and the defaults of the others.

    Args:
        expected: from :func:`parameters_of`.
        given: values by name. A :class:`~pathlib.Path` counts as text.
        where: name of the notebook, for messages.

    Raises:
        ConfigError: an unknown name, a wrong type, or a value out of range or not known; the message names it.
    """
    for name, value in given.items():
        if name not in expected:
            close = difflib.get_close_matches(name, expected, n=2, cutoff=0.5)
            remedy = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(expected) or 'none'}"
            raise ConfigError(f"{name} = {value!r} is not a parameter{f' of {where}' if where else ''}; {remedy}")
    values = {name: parameter.default for name, parameter in expected.items()}
    for name, value in given.items():
        values[name] = expected[name].checked(name, os.fspath(value) if isinstance(value, os.PathLike) else value)
    if "profile" in values:
        from prefix_rft_lab.experiments.profiles import profile

        profile(values["profile"])
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The checked parameters of a notebook."""

    profile: str
    out: Path
    """Folder of everything that the notebook leaves."""
    values: dict[str, Any]
    """All parameters by name, ``out`` as it was given."""

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    @property
    def figures(self) -> Path:
        return self.out / "figures"


STANDARD = {
    "profile": Parameter(str, "quick", "how much is run"),
    "out": Parameter(str, "", "folder of runs and figures; empty: reproduction/<profile> in the repository"),
}
"""What every notebook declares."""


def experiment_parameters(*, profile: str, out: str, **others: Any) -> Experiment:
    """Check a notebook's parameters in the cell after them, and print them with departures from the defaults marked.

    Types and defaults are those of the notebook's own parameters cell, as the kernel ran it; outside of a kernel those
    of :data:`STANDARD`, and other parameters keep the types that they have.

    Raises:
        ConfigError: as :func:`check_parameters`.
    """
    given = {"profile": profile, "out": out, **others}
    expected = _declared_in_kernel(given) or {
        **STANDARD,
        **{name: Parameter(type(value), value) for name, value in others.items()},
    }
    values = check_parameters(expected, _injected() | given)
    for name, value in values.items():
        changed = value != expected[name].default
        # Folders differ from machine to machine, and a committed notebook shouldn't show whose it was.
        shown = repr(_relative(Path(value))) if name == "out" and value else repr(value)
        print(f"{name} = {shown}{f'  (default {expected[name].default!r})' if changed else ''}")
    folder = Path(values["out"]).expanduser() if values["out"] else _root() / "reproduction" / values["profile"]
    return Experiment(profile=values["profile"], out=folder, values=values)


def _injected() -> dict[str, Any]:
    """What papermill put in for the parameters: it only warns of a name that no parameter has."""
    given: dict[str, Any] = {}
    for source in _cells():
        if source.startswith("# Parameters\n"):
            for node in ast.parse(source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    given[node.targets[0].id] = ast.literal_eval(node.value)
    return given


def _cells() -> list[str]:
    """The cells that this kernel has run; none outside of one."""
    shell = sys.modules.get("IPython")
    current = shell.get_ipython() if shell is not None else None
    return current.user_ns.get("In", []) if current is not None else []


def _declared_in_kernel(given: Mapping[str, Any]) -> dict[str, Parameter]:
    """What the parameters cell of this kernel declares: the newest cell that declares all given names."""
    for source in reversed(_cells()):
        with contextlib.suppress(ConfigError):
            declared = _declared(source, "this notebook")
            if declared.keys() >= given.keys():
                return declared
    return {}


def finish(out: str | Path, name: str) -> None:
    """Say that a notebook ran to its end: write ``<out>/notebooks/<name>.done.json``. The last line of a notebook.

    Args:
        out: the notebook's folder, ``experiment.out``.
        name: the notebook's file name without ``.ipynb``.
    """
    write_json(_sentinel(Path(out), name), {"notebook": name, "ticket": os.environ.get(TICKET)})
    print(f"{name} is complete")


def _sentinel(out: Path, name: str) -> Path:
    return out / "notebooks" / f"{name}.done.json"


# ---------------------------------------------------------------------- running


def run_notebook(
    path: str | Path,
    out_path: str | Path,
    parameters: Mapping[str, Any],
    *,
    seconds_limit: float = SECONDS_LIMIT,
    threads: int = 1,
    progress: bool = True,
) -> Path:
    """Execute a notebook by papermill in a kernel of this interpreter and write the executed notebook.

    While it runs, and after a failure, what was executed so far is in ``<out_path stem>.partial.ipynb``.

    Args:
        path: a notebook with a parameters cell that declares ``out``, ending in a call of :func:`finish`. It runs in its
            own folder, as in JupyterLab.
        out_path: where the executed notebook goes.
        parameters: values by name; ``out`` is needed, and is made absolute.
        seconds_limit: wall-clock limit of the whole notebook.
        threads: threads of numerical libraries in the kernel.
        progress: show papermill's bar of cells in a terminal.

    Returns:
        ``out_path``.

    Raises:
        ConfigError: a notebook or parameters that cannot be used; nothing was run.
        RunError: an error in a cell, a killed kernel, the time limit, or an end without :func:`finish`; the message
            names the notebook, the cell's first line and the error.
    """
    path, out_path = Path(path), Path(out_path)
    values = check_parameters(parameters_of(path), parameters, path.name)
    if not values.get("out"):
        raise ConfigError(f"out is not given for {path.name}; a notebook that is run without a browser needs a folder")
    folder = Path(values["out"]).expanduser().absolute()
    ticket, sentinel = secrets.token_hex(8), _sentinel(folder, path.stem)
    sentinel.unlink(missing_ok=True)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    partial = out_path.with_name(f"{out_path.stem}.partial.ipynb")
    partial.unlink(missing_ok=True)
    given = {name: values[name] for name in parameters} | {"out": str(folder)}
    errors = _execute(path, partial, given, ticket, seconds_limit, threads, progress)
    cell, error = _stopped_at(partial)
    kept = f"what was executed is in {partial}"
    if errors is None:
        raise RunError(
            f"{path.name} was stopped at {cell}: it took longer than {seconds_limit:g} seconds; finished runs are kept, "
            f"raise the limit or take a smaller profile; {kept}"
        )
    if errors and error:
        raise RunError(f"{path.name} failed at {cell}: {error}; {kept}")
    if errors:
        raise RunError(f"{path.name} lost its kernel at {cell} ({errors}); out of memory, or ended by hand? {kept}")
    written = json.loads(sentinel.read_text(encoding="utf-8")) if sentinel.is_file() else {}
    if written.get("ticket") != ticket:
        raise RunError(
            f"{path.name} stopped at {cell} without an error and without finish(out, {path.stem!r}) as its last line: it "
            f"did not run to its end; {kept}"
        )
    partial.replace(out_path)
    return out_path


def _execute(
    path: Path,
    out_path: Path,
    parameters: Mapping[str, Any],
    ticket: str,
    seconds_limit: float,
    threads: int,
    progress: bool,
) -> str | None:
    """Run papermill as a child: the last line of what it complains of, empty if of nothing, None if its time was up."""
    import psutil

    with tempfile.TemporaryDirectory(prefix="prl-") as folder:
        # Whatever kernels are installed under that name, this one is of this interpreter.
        spec = Path(folder) / "kernels" / "python3"
        spec.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python"})
        )
        # Braces in a path are fields to papermill.
        source, target = (str(p).replace("{", "{{").replace("}", "}}") for p in (path, out_path))
        bar = progress and sys.stderr.isatty()
        options = ["--kernel=python3", "--start-timeout=180", "--log-level=ERROR", f"--cwd={path.parent.absolute()}"]
        options += [
            "--progress-bar" if bar else "--no-progress-bar",
            f"--parameters_yaml={json.dumps(dict(parameters))}",
        ]
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "papermill", source, target, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if bar else subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                **dict.fromkeys(THREAD_VARIABLES, str(threads)),
                TICKET: ticket,
                "JUPYTER_PATH": folder,
                # No start-up files and no history of whoever runs it.
                "IPYTHONDIR": str(Path(folder) / "ipython"),
                # A backend for scripts would keep the figures out of the notebook.
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            },
        )
        try:
            _, errors = child.communicate(timeout=seconds_limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # The kernel has a session of its own; training workers leave when their input closes.
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*psutil.Process(child.pid).children(recursive=True), child]:
                    process.kill()
            child.wait()
    return (errors or f"status {child.returncode}").strip().splitlines()[-1] if child.returncode else ""


def _stopped_at(notebook: Path) -> tuple[str, str]:
    """The last cell of an executed notebook that was started, and the error there; empty if there is none."""
    cells = _read(notebook)["cells"] if notebook.is_file() else []
    started = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("start_time")]
    if not started:
        return "its start", ""
    lines = [line.strip() for line in _text(started[-1]["source"]).splitlines() if line.strip()]
    errors = [f"{o['ename']}: {' '.join(o['evalue'].split())}" for o in started[-1].get("outputs", []) if "ename" in o]
    return f"cell {lines[0]!r}" if lines else "an empty cell", "".join(errors[:1])


# ---------------------------------------------------------------------- reproduction


def reproduce(
    profile: str = "quick",
    out: str | Path = "reproduction",
    workers: int = 2,
    *,
    notebooks: str | Path | None = None,
    only: Sequence[str] | None = None,
    sweeps: Sequence[str] | None = None,
    seconds_limit: float = SECONDS_LIMIT,
    progress: bool = True,
) -> Path:
    """Train the profile's sweeps into ``<out>/<profile>``, run its numbered notebooks in order, and write the report.

    The notebooks are executed every time and find their runs finished; interrupted runs resume, so that the same call
    after an interruption goes on where it stopped.

    Args:
        profile: smoke, quick or full.
        out: parent folder of the profile's folder.
        workers: training processes, also for notebooks that declare ``workers``.
        notebooks: folder of the notebooks; by default ``notebooks`` of the repository.
        only: numbers of the notebooks to run, e.g. ``["01", "06"]``; by default those of the profile.
        sweeps: names of the sweeps to train and report, the first is the main comparison; by default those of the
            profile. Claims on others are reported as missing.
        seconds_limit: wall-clock limit of each notebook.
        progress: show what is going on, and at the end where everything is.

    Returns:
        the report.

    Raises:
        ConfigError: an unknown profile, sweep or notebook; nothing was run.
        RunError: a run or a notebook failed; finished runs are kept.
    """
    from prefix_rft_lab import report
    from prefix_rft_lab.experiments import profiles as experiments
    from prefix_rft_lab.experiments.sweeps import plan, run_all

    chosen = experiments.profile(profile)
    plans = [plan(name, profile) for name in sweeps or chosen.sweeps]
    if workers < 1:
        raise ConfigError(f"workers = {workers} cannot be used: it should be at least 1")
    sources = find_notebooks(notebooks)
    by_number = {path.name.partition("_")[0]: path for path in sources}
    for number in only or ():
        if number not in by_number:
            raise ConfigError(f"only = {number!r} is no notebook; the numbers are {', '.join(by_number)}")
    wanted = only or chosen.notebooks or list(by_number)
    sources = [path for number, path in by_number.items() if number in wanted]
    folder = Path(out) / profile
    declared = [parameters_of(path) for path in sources]
    given = [
        {"profile": profile, "out": str(folder), **({"workers": workers} if "workers" in names else {})}
        for names in declared
    ]
    for path, names, values in zip(sources, declared, given, strict=True):
        check_parameters(names, values, path.name)
    started = time.monotonic()
    # All at once, before any notebook: one status with the time to go, and a run that fails shows early.
    trained = run_all(plans, out=folder / "runs", workers=workers, progress=progress)
    seconds: dict[str, float] = {"runs": time.monotonic() - started}
    executed: list[Path] = []
    for path, values in zip(sources, given, strict=True):
        started = time.monotonic()
        executed.append(
            run_notebook(path, folder / "notebooks" / path.name, values, seconds_limit=seconds_limit, progress=progress)
        )
        seconds[path.name] = time.monotonic() - started
        if progress:
            print(f"{path.name}: {seconds[path.name]:.0f} s", flush=True)
    # Runs of an earlier config, or your own, may lie in the same folder: they must not enter the averages.
    planned = {directory_of(config, folder / "runs") for plan in plans for config in (*plan.experts, *plan.configs)}
    everything = load_all(folder / "runs")
    own = [run for run in everything if run.path in planned]
    written = report.write_report(
        folder,
        runs=trained[0],
        title=f"Prefix-RFT, profile {profile}",
        seconds=sum(seconds.values()),
        notebooks=executed,
        sweeps={plan.sweep.name: (plan, runs) for plan, runs in zip(plans, trained, strict=True)},
    )
    if progress:
        print(shown(_closing(written, folder, own, len(everything) - len(own), seconds), keep="\n"))
    return written


def find_notebooks(folder: str | Path | None = None) -> list[Path]:
    """The numbered notebooks ``NN_name.ipynb`` of a folder, in order; by default of the repository's ``notebooks``.

    Raises:
        ConfigError: no such folder, or none in it.
    """
    chosen = Path(folder) if folder is not None else _root() / "notebooks"
    found = sorted(chosen.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ConfigError(
            f"notebooks = {str(chosen)!r} holds no numbered notebooks; run from a checkout of the repository, or give their "
            "folder by --notebooks"
        )
    return found


def _closing(report: Path, folder: Path, runs: Sequence[Run], others: int, seconds: Mapping[str, float]) -> str:
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines = [
        "",
        f"report     {report.absolute()}",
        f"           {report.absolute().as_uri()}",
        f"figures    {(folder / 'figures').absolute()}",
        f"notebooks  {(folder / 'notebooks').absolute()} ({times})",
        f"runs       {len(runs)} in {folder / 'runs'}, read them by prefix_rft_lab.load_all(...)",
        *(f"           {run.path} diverged and counts as solving nothing" for run in runs if run.diverged),
        f"sweeps     {(folder / 'runs' / 'sweeps').absolute()}",
    ]
    if others:
        lines.append(f"           {others} other runs in the same folder are not in the report")
    return "\n".join(lines)


# ---------------------------------------------------------------------- small things


def _root() -> Path:
    """The repository: the nearest folder upward that has ``notebooks`` and a pyproject.toml; else where we are."""
    here = Path.cwd()
    package = Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, package):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def _relative(path: Path) -> str:
    """A path as seen from the repository if it lies there, else its last two parts."""
    with contextlib.suppress(ValueError):
        return path.absolute().relative_to(_root()).as_posix()
    return Path(*path.parts[-2:]).as_posix() if path.is_absolute() else path.as_posix()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"notebook = {str(path)!r} is not a file; give the path of an .ipynb file")
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if notebook["nbformat"] != 4 or not isinstance(notebook["cells"], list):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"notebook = {str(path)!r} is not a notebook in format 4; save it again by Jupyter") from None
    return notebook


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
