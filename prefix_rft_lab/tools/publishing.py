"""A finished run's model on the Hub, with a card that says what it is: method, base model, config, scores, source."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from prefix_rft_lab.core import hub
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import check_writable, damaged, disk_error
from prefix_rft_lab.core.tables import show
from prefix_rft_lab.models import templates
from prefix_rft_lab.runs.run import Run
from prefix_rft_lab.runs.summary import scores_of

PAPER = "https://arxiv.org/abs/2507.01679"
_SOURCES = ("model.path", "data.problems", "data.test_sets", "data.expert")
"""Fields that may name a place on this machine."""


def model_files(run: Run) -> dict[str, Path]:
    """Path in the repository -> file, of a finished run's model directory.

    Raises:
        RunError: the run is not finished, diverged, kept no model, or one that is damaged or holds symbolic links.
    """
    if not run.done:
        raise RunError(f"{run.path} is not finished; train it to the end first (the same command resumes it)")
    if run.diverged:
        raise RunError(f"{run.path} kept no model: {run.diverged}")
    run.check(model=True)
    folder = run.path / "model"
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise RunError(f"{run.path} holds no model; train it again with records.save_model=true, in another --out")
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink():
            raise RunError(f"{path} is a symbolic link; put what it points to in its place, if that is to be uploaded")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    for path in files:
        if path.suffix == ".safetensors":
            _refuse_broken(path)
    return {path.relative_to(folder).as_posix(): path for path in files if path.name != "README.md"}


def _refuse_broken(path: Path) -> None:
    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError) as error:
        pointer = path.read_bytes()[:40].startswith(b"version https://git-lfs")
        raise damaged(path, "it is a pointer of Git LFS: git lfs pull fetches the file" if pointer else error) from None


def model_card(run: Run, *, repo: str | None = None, license: str | None = None) -> str:
    """The card of a run's model: front matter for the Hub, then Markdown.

    Args:
        repo: name of the repository, the card's title; the run's name if not given.
        license: identifier of a licence, e.g. ``apache-2.0``; the card says nothing about it if not given. It is the
            publisher's to choose, within the terms of the base model and the data.

    Raises:
        RunError: the run has no summary.
    """
    from huggingface_hub import ModelCardData

    config, summary = run.config, run.summary
    base, problems = _on_hub(config.model.path), _on_hub(config.data.problems)
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base,
        datasets=problems,
        license=license,
        tags=["prefix-rft", run.method, "reinforcement-learning", "arxiv:2507.01679"],
    )
    title = _words(repo.rpartition("/")[2] if repo else run.path.name)
    trained_from = f"[{base}](https://huggingface.co/{base})" if base else _code(_public(config.model.path))
    facts = {
        "method": f"{_words(run.title)} ({_code(run.method)}), {len(run.metrics)} steps, seed {run.seed}",
        "base model": f"{trained_from}{', the base policy of the kit' if config.model.path == 'tiny' else ''}",
        "problems": _code(_public(config.data.problems)),
        "run": _code(f"{config.name}/{run.path.name}"),
        "made by": ", ".join(_made_by(run)),
    }
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {title}",
        f"A language model that was trained by prefix_rft_lab, a research kit for [Prefix-RFT]({PAPER}) (arXiv 2507.01679).",
        _table([("", ""), *facts.items()]),
        "## Scores on held-out problems",
        *_scores(config, summary["splits"]),
        "## Config",
        f"What departs from the defaults of the kit:\n\n{_block(_departures(config), 'yaml')}",
        "## Use",
        _use(config, repo),
    ]
    return "\n\n".join(parts) + "\n"


def write_folder(run: Run, folder: str | Path, *, repo: str | None = None, license: str | None = None) -> Path:
    """Write what :func:`push` uploads into a new or empty folder, which transformers loads.

    Raises:
        ConfigError: the folder holds something, or cannot be written.
        RunError: as :func:`model_files`, or the disk is full.
    """
    folder = Path(folder).expanduser()
    files, card = model_files(run), model_card(run, repo=repo, license=license)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"folder = {str(folder)!r} is there and not empty; choose a new one")
    check_writable(folder, field="folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, path in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (folder / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def push(run: Run, repo: str, *, private: bool = False, license: str | None = None, api: Any = None) -> str:
    """Upload a finished run's model and its card in one commit, and return the address of the repository.

    Args:
        repo: ``owner/name``; created if it is not there.
        private: whether only its owner sees it. A repository that is public already is refused, not used.
        license: as in :func:`model_card`.
        api: a ``huggingface_hub.HfApi``; by default one with the token of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        ConfigError: no such name, no token, no network, or the Hub refuses; nothing was uploaded.
        RunError: as :func:`model_files`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors, get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"--repo {repo!r} is no name of a repository; write owner/name")
    files, card = model_files(run), model_card(run, repo=repo, license=license)
    api = api or HfApi()
    token = api.token or get_token()
    if switched := hub.switched_off():
        raise ConfigError(f"--repo {repo!r}: the network is switched off by {' and '.join(switched)}; unset it")
    if not token:
        raise ConfigError(f"--repo {repo!r}: there is no token for the Hub; run hf auth login, or set HF_TOKEN")
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
    operations.append(CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card.encode()))
    try:
        try:
            # Asked first, since it takes a time-out: without a network the answer is there at once.
            public = not api.model_info(repo, timeout=hub.SECONDS).private
        except errors.RepositoryNotFoundError:
            api.create_repo(repo, private=private)
            public = not private
        if private and public:
            raise ConfigError(
                f"--private: {repo} is there and public; make it private on its page, or choose another name"
            )
        done = api.create_commit(repo, operations, commit_message=f"{run.title}, seed {run.seed}")
    except (ConfigError, KeyboardInterrupt):
        raise
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = "log in with hf auth login, with a token that may write there" if status in (401, 403) else "try again"
        raise ConfigError(f"--repo {repo!r}: the Hub refuses ({_first_line(error, token)}); {remedy}") from None
    except Exception as error:
        raise ConfigError(
            f"--repo {repo!r}: {hub.why_not()} ({_first_line(error, token)}); look at the network and give the same command "
            "again, or write the folder with --dry-run"
        ) from None
    return str(done.repo_url)


def _first_line(error: Exception, token: str) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].replace(token, "***")


# ---------------------------------------------------------------------- parts of the card


def _on_hub(source: str) -> str | None:
    """The repository on the Hub that a model or data set comes from; None for the kit's own and for a path."""
    name = source.partition(":")[0]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists() or name.startswith("."):
        return None
    return None if name.endswith((".jsonl", ".json", ".parquet", ".csv")) else name


def _public(value: Any) -> Any:
    """A value without the folders of this machine that lead to it."""
    if isinstance(value, list):
        return [_public(one) for one in value]
    if not isinstance(value, str) or _on_hub(value):
        return value
    return re.sub(r"^(policy:)?.*/(?=[^/])", r"\1", value, flags=re.S)


def _departures(config: RunConfig) -> str:
    """A line ``field: value`` for each departure from the defaults; values are one line each, whatever they hold."""
    return "\n".join(
        f"{name}: {json.dumps(_public(value) if name in _SOURCES else value, ensure_ascii=False)}"
        for name, value in config.departures().items()
    )


def _made_by(run: Run) -> Iterator[str]:
    made = run.environment
    for name in ("prefix_rft_lab", "source", "torch", "transformers"):
        if name in made:
            yield f"{name} {_code(str(made[name]))}"


def _scores(config: RunConfig, splits: Mapping[str, Any]) -> Iterator[str]:
    if not splits:
        yield "None: the run ended without a final evaluation."
        return
    heads = {"split": "split", "problems": "problems", "k": "k", "avg": "avg@k", "pass": "pass@k", "greedy": "greedy"}
    rows = [{"split": _words(split), **part, **scores_of(part)} for split, part in splits.items()]
    yield show(pd.DataFrame(rows), "md", heads=heads)
    yield (
        f"Brackets are 95% intervals over problems; samples at temperature {config.evaluation.temperature:g}, of "
        f"at most {config.rollout.max_response_tokens} tokens. avg@k: mean over k samples; pass@k: a problem counts if one "
        "of k is right; greedy: one response without sampling."
    )


def _use(config: RunConfig, repo: str | None) -> str:
    where = json.dumps(repo or "path/to/this/folder")
    messages = [{"role": "user", "content": f"PROBLEM{config.model.instruction}"}]
    if (system := templates.system_message(config.model.system_prompt)) is not None:
        messages.insert(0, {"role": "system", "content": system})
    code = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({where})
model = AutoModelForCausalLM.from_pretrained({where})
messages = {json.dumps(messages, ensure_ascii=False)}
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens={config.rollout.max_response_tokens})
print(tokenizer.decode(output[0]))"""
    return _block(code, "python")


def _words(text: str) -> str:
    """Text on one line, without what Markdown or HTML reads."""
    return re.sub(r"[\s|`<>\[\]*#\\]+", " ", text).strip()


def _code(text: str) -> str:
    """Text as a span of code on one line, also within a table."""
    return "`" + re.sub(r"[\s`|]+", " ", text).strip() + "`"


def _block(text: str, language: str) -> str:
    """Text as a block of code; its fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
