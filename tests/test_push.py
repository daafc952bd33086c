"""A run's model on its way to the Hub: the card, the folder, and the upload to a server that answers like the Hub."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from run_factory import write_run

from prefix_rft_lab import publishing
from prefix_rft_lab.cli import main
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.publishing import model_card, model_files, push, write_folder
from prefix_rft_lab.runs import Run, RunError
from prefix_rft_lab.tasks.base_policy import ASSETS

TOKEN = "hf_abcdefghijklmnop"
HOSTILE = "/home/me/secret folder/a\n---\nlicense: mit\n```\n| x | <script>alert(1)</script> `code`.jsonl"


def with_model(tmp_path, **changes) -> Run:
    """A finished run whose model is the base policy of the kit."""
    run = write_run(tmp_path / "runs", "rft", **changes)
    shutil.copytree(ASSETS, run.path / "model", ignore=shutil.ignore_patterns("*.md", ".*"))
    return run


@pytest.fixture
def hub(monkeypatch):
    """(HfApi of a server on this machine, what it was asked, what it is to answer)."""
    asked: list[tuple[str, str, str]] = []
    answers: dict[str, tuple[int, dict]] = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            asked.append((self.command, self.path, body))
            address = f"http://127.0.0.1:{self.server.server_port}/me/model"
            status, value = 200, {}
            if self.path.endswith("/create"):
                value = {"url": address}
            elif "/preupload/" in self.path:
                value = {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(body)["files"]
                    ]
                }
            elif "/commit/" in self.path:
                value = {"commitUrl": f"{address}/commit/1234", "commitOid": "1234", "success": True}
            elif self.path == "/api/models/me/model":
                status = 404
            for part, given in answers.items():
                if part in self.path:
                    status, value = given
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        do_GET = do_POST = do_HEAD = answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=TOKEN), asked, answers
    server.shutdown()
    server.server_close()


# ---------------------------------------------------------------------- the card


def test_the_card_says_what_the_model_is(tmp_path):
    run = with_model(tmp_path, splits=("test", "ood"), **{"model.path": "owner/base-1.5b", "prefix.low": 0.1})
    card = ModelCard(model_card(run, repo="me/model", license="apache-2.0"))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "owner/base-1.5b",
        "license": "apache-2.0",
        "tags": ["prefix-rft", "rft", "reinforcement-learning", "arxiv:2507.01679"],
    }
    part = run.summary["splits"]["ood"]
    low, high = part["avg_interval"]
    assert f"| ood | 6 | 4 | {part['avg']:.3f} [{low:.3f}, {high:.3f}] |" in card.content
    made = json.loads((run.path / "env.json").read_text())
    for words in ("RFT (Dr.GRPO)", "arXiv 2507.01679", f"source `{made['source']}`", "prefix.low: 0.1", "me/model"):
        assert words in card.content
    assert "license" not in ModelCard(model_card(run)).data.to_dict()
    assert "records.writers" not in card.content


def test_a_hostile_name_breaks_neither_front_matter_nor_table_nor_block(tmp_path):
    run = with_model(tmp_path, **{"data.problems": HOSTILE, "model.instruction": HOSTILE})
    text = model_card(run, repo="me/model")
    card = ModelCard(text)
    assert "license" not in card.data.to_dict() and "datasets" not in card.data.to_dict()
    assert text.count("\n---\n") == 1
    assert "secret" not in text.partition("## Use")[0].replace("secret folder/a\\n---", "")
    [table] = [line for line in text.splitlines() if line.startswith("| problems | `")]
    assert table.count("|") == 3
    config = text.partition("## Config")[2].partition("## Use")[0]
    fence = config.splitlines()[4].removesuffix("yaml")
    assert len(fence) > 3 and config.count(f"\n{fence}") == 2
    fields = yaml.safe_load(config.split(fence)[1].removeprefix("yaml"))
    assert fields["model.instruction"] == HOSTILE
    code = text.partition("## Use")[2]
    compile(code.split(fence)[1].removeprefix("python"), "card", "exec")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/models/base", "base"),
        ("~/models/base", "base"),
        ("../data/math.jsonl", "math.jsonl"),
        ("data/math.jsonl", "math.jsonl"),
        ("policy:/home/me/expert", "policy:expert"),
        ("owner/name:config:split", "owner/name:config:split"),
        (["/home/a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
        ("chains", "chains"),
    ],
)
def test_a_card_names_no_folder_of_this_machine(value, shown):
    assert publishing._public(value) == shown


# ---------------------------------------------------------------------- the folder


def test_the_folder_loads_with_plain_transformers(tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = with_model(tmp_path)
    folder = tmp_path / "upload"
    assert main(["push", str(run.path), "--dry-run", str(folder), "--license", "mit"]) == 0
    assert capsys.readouterr().out == f"written {folder}\n"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert {p.name for p in folder.iterdir()} == {*model_files(run), "README.md"}
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    with pytest.raises(ConfigError, match="not empty"):
        write_folder(run, folder)


def test_a_run_without_a_model_is_refused(tmp_path, capsys):
    unfinished = write_run(tmp_path, "rft", done=False)
    assert main(["push", str(unfinished.path), "--repo=me/model"]) == 1
    assert "is not finished; train it to the end first" in capsys.readouterr().err
    without = write_run(tmp_path, "sft")
    with pytest.raises(RunError, match=r"holds no model; train it again with records.save_model=true"):
        model_files(without)
    (without.path / "DIVERGED.json").write_text('{"sentence": "loss = nan at step 3"}')
    with pytest.raises(RunError, match="kept no model: loss = nan at step 3"):
        model_files(without)


# ---------------------------------------------------------------------- the upload


def test_what_arrives_is_the_folder_in_one_commit(tmp_path, hub):
    api, asked, _ = hub
    run = with_model(tmp_path)
    assert push(run, "me/model", private=True, api=api) == f"{api.endpoint}/me/model"
    [created] = [json.loads(body) for method, path, body in asked if path == "/api/repos/create"]
    assert created["name"] == "model" and created["organization"] == "me"
    assert created.get("private") is True or created.get("visibility") == "private"
    [commit] = [body for method, path, body in asked if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    assert lines[0]["value"]["summary"] == "RFT (Dr.GRPO), seed 0"
    arrived = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
    folder = write_folder(run, tmp_path / "upload", repo="me/model")
    assert arrived == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_private_is_not_pushed_into_a_public_repository(tmp_path, hub):
    api, asked, answers = hub
    answers["/api/models/me/model"] = (200, {"id": "me/model", "private": False})
    with pytest.raises(ConfigError, match="--private: me/model is there and public"):
        push(with_model(tmp_path), "me/model", private=True, api=api)
    assert [method for method, _, _ in asked] == ["GET"]


def test_what_the_hub_refuses_is_said_in_one_sentence_without_the_token(tmp_path, hub):
    api, _, answers = hub
    run = with_model(tmp_path)
    answers["/create"] = (403, {"error": f"token {TOKEN} cannot write"})
    with pytest.raises(ConfigError) as refused:
        push(run, "me/model", api=api)
    sentence = str(refused.value)
    assert "the Hub refuses (403" in sentence and "hf auth login, with a token that may write there" in sentence
    assert TOKEN not in sentence and "\n" not in sentence


def test_no_name_no_token_no_network_are_said_at_once(tmp_path, monkeypatch, capsys):
    run = with_model(tmp_path)
    assert main(["push", str(run.path)]) == 2
    assert "--repo is missing; give owner/name, or --dry-run DIR" in capsys.readouterr().err
    assert main(["push", str(run.path), "--repo", "model"]) == 2
    assert "--repo 'model' is no name of a repository; write owner/name" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="switched off by HF_HUB_OFFLINE; unset it"):
        push(run, "me/model", api=HfApi(token=TOKEN))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token for the Hub; run hf auth login, or set HF_TOKEN"):
        push(run, "me/model")
    with pytest.raises(ConfigError, match=r"the Hub cannot be reached .*give the same command again"):
        push(run, "me/model", api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))


@pytest.mark.parametrize("what", ["a file", "a folder", "the folder itself"])
def test_links_are_not_followed_out_of_the_folder(tmp_path, what):
    run = with_model(tmp_path)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.json").write_text("{}")
    if what == "the folder itself":
        (run.path / "model").rename(tmp_path / "model")
        (run.path / "model").symlink_to(tmp_path / "model")
    else:
        (run.path / "model" / "notes").symlink_to(tmp_path / "secret" / ("key.json" if what == "a file" else ""))
    with pytest.raises(RunError, match=r"model(/notes)? is a symbolic link; put what it points to in its place"):
        write_folder(run, tmp_path / "upload")
    assert not (tmp_path / "upload").exists()


def test_weights_that_are_a_pointer_or_torn_are_not_pushed(tmp_path):
    run = with_model(tmp_path)
    weights = run.path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for content, cause in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull fetches the file"),
        (whole[:1000], r"\w"),
    ):
        weights.write_bytes(content)
        with pytest.raises(RunError, match=rf"model\.safetensors is damaged \(.*{cause}"):
            model_files(run)
