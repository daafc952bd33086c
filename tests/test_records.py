"""Token records: texts that can be read, rows that are chosen, what an update did, and tables of any model."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefix_rft_lab import cli, methods, policy
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.runs.run import FOLLOWED, TOKEN_COLUMNS, Run, RunWriter
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import encode_problems, pad_id, pad_rows
from prefix_rft_lab.tools import reading
from prefix_rft_lab.tools.reading import steps_of, token_table_of
from prefix_rft_lab.trainer import Trainer
from prefix_rft_lab.training.records import TokenRecorder, TokenTexts, chosen_rows, tokenizer_id
from prefix_rft_lab.types import Row
from prefix_rft_lab.update import Updater

# ---------------------------------------------------------------- tokens as text


def byte_level(*merges):
    """A byte-level BPE tokenizer with these merges, given in the vocabulary's own symbols."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_half_a_character_is_shown_as_bytes():
    # "é" is C3 A9 ("Ã©" in the vocabulary's symbols), "🙂" is F0 9F 99 82.
    tokenizer = byte_level(("Ġ", "Ã"), ("Ĭ", "a"))
    texts = TokenTexts(tokenizer)
    shown = [texts(token) for token in tokenizer("é 🙂", add_special_tokens=False)["input_ids"]]
    assert shown == ["<0xC3>", "<0xA9>", " ", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    ids = tokenizer.convert_tokens_to_ids(["ĠÃ", "Ĭa", "a"])
    assert [texts(token) for token in ids] == [" <0xC3>", "<0x8A>a", "a"], "a piece of a character beside whole ones"
    whole = byte_level(("Ã", "©"))
    assert TokenTexts(whole)(whole.convert_tokens_to_ids("Ã©")) == "é"


def test_a_replacement_character_in_the_text_is_itself():
    tokenizer = byte_level(("ï", "¿"), ("ï¿", "½"))
    assert TokenTexts(tokenizer)(tokenizer.convert_tokens_to_ids("ï¿½")) == "\ufffd"


def test_leading_spaces_of_sentencepiece_are_kept():
    tokenizer = Tokenizer(models.WordLevel({"▁now": 0, "now": 1, "<0xE2>": 2}, unk_token="now"))
    tokenizer.decoder = decoders.Metaspace()
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [texts(token) for token in range(3)] == [" now", "now", "<0xE2>"]


def test_a_vocabulary_has_a_name(tiny):
    one, same, other = byte_level(("a", "b")), byte_level(("a", "b")), byte_level(("a", "c"))
    assert tokenizer_id(one) == tokenizer_id(same) != tokenizer_id(other)
    assert len(tokenizer_id(tiny[1])) == 12


# ---------------------------------------------------------------- which rows


@pytest.fixture(scope="module")
def problems(tiny, small):
    return encode_problems(tiny[1], chains.problems("train", 6), small())[0]


def group(problem, prefix, lengths=(3, 3)):
    rows = [Row(problem=problem, row=i, sampled_ids=[5] * n) for i, n in enumerate(lengths)]
    rows[-1].prefix_ids = [4] * prefix
    return rows


def test_rows_that_are_recorded(problems):
    rows = [*group(problems[0], 2), *group(problems[1], 0), *group(problems[2], 4), *group(problems[0], 2)]
    # Both rows of the first problem, no row of the second (no prefix was drawn), the hybrid one of the third.
    assert chosen_rows(rows, 1, 100) == [0, 1, 5]
    assert chosen_rows(rows, 2, 100) == [0, 1, 2, 3, 5]
    # 5 + 7 tokens of hybrid rows come first, then whole plain rows while they fit.
    assert chosen_rows(rows, 2, 12) == [1, 5]
    assert chosen_rows(rows, 2, 15) == [0, 1, 5]
    assert chosen_rows(rows, 2, 4) == [0]
    assert chosen_rows([], 2, 100) == []


# ---------------------------------------------------------------- what a run records


@pytest.fixture(scope="module")
def recorded(tiny, small, tmp_path_factory):
    """(config, tables of four steps, each with two optimizer windows)."""
    config = small(
        **{"records.tokens_every": 1, "loss.updates_per_rollout": 2, "records.followed": 2, "records.top_k": 3}
    )
    tables = []
    with Trainer(config, RunWriter(config, tmp_path_factory.mktemp("runs"))) as trainer:
        optimizers = trainer.optimizers(methods.PREFIX_RFT)
        for step in range(4):
            line, new = trainer.step(methods.PREFIX_RFT, optimizers, step, step)
            assert line["seconds_record"] > 0
            tables += new.values()
        identity = tokenizer_id(trainer.tokenizer)
    assert all(table.attrs["tokenizer"] == identity for table in tables)
    return config, tables


def test_columns_are_those_of_the_schema(recorded):
    _, tables = recorded
    for table in tables:
        assert list(table.columns) == list(TOKEN_COLUMNS)
        assert set(table["kind"]) == {"prefix", "continuation", "on_policy"}
        assert table["temperature"].eq(1.0).all() and table["run"].nunique() == 1
        assert all(len(ids) == len(texts) == 3 for ids, texts in zip(table["top_ids"], table["top_texts"], strict=True))
        assert (np.stack(table["top_probs"].to_list()).sum(1) <= 1 + 1e-5).all()


def test_ratios_are_those_of_the_loss(recorded):
    _, tables = recorded
    trained = [table[table["row"] != FOLLOWED] for table in tables]
    for table in trained:
        assert np.exp(table["logp"] - table["old_logp"]).to_numpy() == pytest.approx(
            table["ratio"].to_numpy(), rel=1e-6
        )
    everything = pd.concat(trained)
    first = everything.groupby(["step"])["ratio"].first()
    assert (first == 1).all(), "the first window starts from the old policy"
    assert (everything["ratio"] != 1).any(), "the second window has moved away"


def test_followed_demonstrations_are_one_text_before_and_after_every_update(recorded, problems):
    _, tables = recorded
    followed = [table[table["row"] == FOLLOWED].reset_index(drop=True) for table in tables]
    for now, later in itertools.pairwise(followed):
        assert now["token_id"].tolist() == later["token_id"].tolist()
        # What the update left is what the next step finds; other batches change the last bits.
        assert now["entropy_after"].to_numpy() == pytest.approx(later["entropy"].to_numpy(), abs=1e-5)
        assert (now["entropy_after"] - now["entropy"]).abs().max() > 1e-4
    one = followed[0]
    assert one["advantage"].isna().all() and one["score"].isna().all() and (one["ratio"] == 1).all()
    assert one.groupby("problem")["token_id"].apply(list).tolist() == [p.demonstration_ids for p in problems[:2]]


def test_followed_demonstrations_are_kept_on_the_threshold_of_the_update(recorded):
    _, tables = recorded
    for table in tables:
        trained = table[(table["row"] != FOLLOWED) & (table["kind"] == "prefix")]
        followed = table[table["row"] == FOLLOWED]
        assert followed.loc[~followed["kept"], "entropy"].max() < trained.loc[trained["kept"], "entropy"].max()
        assert followed.loc[followed["kept"], "entropy"].min() > followed.loc[~followed["kept"], "entropy"].max()


def test_a_table_is_bounded(tiny, small, problems):
    config = small(**{"records.most_tokens": 40, "records.followed": 6})
    recorder = TokenRecorder(Updater(tiny[0], config, pad_id=0), tiny[1], config, problems, "run")
    assert 0 < sum(len(row.response_ids) for row in recorder.followed) <= 40
    rows = [row for problem in problems for row in group(problem, 2, (20, 20))]
    started = recorder.before(rows, 0)
    assert sum(len(rows[i].response_ids) for i in started.places) <= 40
    assert recorder.before(rows, 1) is None


def test_nothing_to_follow_and_nothing_to_record(small, tmp_path):
    config = small(method="sft", **{"records.tokens_every": 1, "records.followed": 0, "records.most_tokens": 1})
    with Trainer(config, RunWriter(config, tmp_path)) as trainer:
        line, tables = trainer.step(methods.SFT, trainer.optimizers(methods.SFT), 0, 0)
    assert tables == {} and line["seconds_record"] == 0


# ---------------------------------------------------------------- reading a run


def test_a_run_that_is_being_written(tmp_path, small, recorded):
    config, tables = recorded
    writer = RunWriter(config, tmp_path)
    writer.start({})
    run = Run(writer.path)
    assert run.tokens.empty and list(run.tokens.columns) == list(TOKEN_COLUMNS)
    assert run.tokenizer == "" and run.tokens.attrs == {"tokenizer": ""}
    writer.table("tokens/step-000000", tables[0])
    (writer.path / "tokens" / ".step-000001.parquet.77.tmp").write_bytes(b"PAR1 half a file")
    found = run.tokens
    assert found["step"].unique().tolist() == [0] and len(found) == len(tables[0])
    writer.close()


def test_a_run_of_an_older_version(tmp_path, recorded):
    config, tables = recorded
    writer = RunWriter(config, tmp_path)
    writer.start({"train": 3})
    writer.table("tokens/step-000000", tables[0].drop(columns=["run", "ratio", "top_texts", "entropy_after"]))
    found = Run(writer.path).tokens
    assert (found["run"] == writer.path.name).all() and found["ratio"].isna().all()
    writer.close()


# ---------------------------------------------------------------- any model


def test_table_of_a_model(tiny, small, problems):
    model, tokenizer = tiny
    config = small(**{"micro_batch_tokens": 100})
    table = token_table_of(
        model, tokenizer, problems, config, samples=2, temperature=0.8, top_k=4, seed=3, step=7, run="m"
    )
    assert list(table.columns) == list(TOKEN_COLUMNS)
    assert table["row"].unique().tolist() == [FOLLOWED, 0, 1] and (table["step"] == 7).all()
    read = table[table["row"] == FOLLOWED]
    rows = [Row(problem=p, row=FOLLOWED, prefix_ids=p.demonstration_ids, is_demonstration=True) for p in problems]
    with torch.no_grad():
        stats = policy.response_stats(model, pad_rows(rows, pad_id(tokenizer)), temperature=0.8)
    assert read["entropy"].to_numpy() == pytest.approx(stats.entropy.numpy(), abs=1e-5)
    assert read["logp"].to_numpy() == pytest.approx(stats.logp.numpy(), abs=1e-4)
    assert read["score"].isna().all() and table.loc[table["row"] >= 0, "score"].isin([0.0, 1.0]).all()
    again = token_table_of(
        model, tokenizer, problems, config, samples=2, temperature=0.8, top_k=4, seed=3, step=7, run="m"
    )
    pd.testing.assert_frame_equal(table, again)
    other = token_table_of(
        model, tokenizer, problems, config, samples=2, seed=4, demonstrations=False, max_tokens=3, score=False
    )
    assert other["kind"].eq("on_policy").all() and other["position"].max() == 2 and other["score"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"demonstrations": False}, "samples = 0 and no demonstration is read"),
        ({"samples": -1}, "samples = -1 cannot be used; give at least 0"),
        ({"top_k": 0}, "top_k = 0 cannot be used"),
        ({"temperature": 0.0}, "temperature = 0.0 cannot divide logits"),
    ],
)
def test_what_cannot_be_read(tiny, small, problems, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        token_table_of(*tiny, problems, small(), **arguments)


def test_steps_of_checkpoints():
    assert steps_of(["a/checkpoint-100", "a/checkpoint-20"]) == [100, 20]
    assert steps_of(["a/global_step_5"]) == [5]
    assert steps_of(["tiny", "a/checkpoint-20"]) == [0, 1]
    for names, steps in ((["a"], [1, 2]), (["a", "b"], [1, 1])):
        with pytest.raises(ConfigError, match="give each model a step of its own"):
            steps_of(names, steps)


# ---------------------------------------------------------------- the command


def test_the_command_writes_the_table_and_says_what_is_in_it(tmp_path, capsys, tiny, small):
    out = tmp_path / "t.parquet"
    assert cli.main(["tokens", "--model=tiny", "--limit=3", "--sample=1", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "3 problems" in printed and "demonstration" in printed and "of 3 samples right" in printed
    table = pd.read_parquet(out)
    assert list(table.columns) == list(TOKEN_COLUMNS) and table.attrs["tokenizer"] == tokenizer_id(tiny[1])


def test_checkpoints_of_one_model_side_by_side(tmp_path, tiny):
    changed = copy.deepcopy(tiny[0])
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.05)
    folders = []
    for step, model in ((10, tiny[0]), (200, changed)):
        folders.append(tmp_path / f"checkpoint-{step}")
        model.save_pretrained(folders[-1])
        tiny[1].save_pretrained(folders[-1])
    table = reading.read_tokens([str(folder) for folder in folders], limit=2).table
    parts = [part.reset_index(drop=True) for _, part in table.groupby("step")]
    assert table["step"].unique().tolist() == [10, 200]
    assert parts[0]["token_id"].equals(parts[1]["token_id"]) and not parts[0]["entropy"].equals(parts[1]["entropy"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out=t.csv"], "out = 't.csv' does not end in .parquet"),
        (["--limit=0"], "limit = 0 leaves no problem"),
        (["--steps=x"], "--steps 'x' is not understood"),
        (["--steps=1,2"], "steps = 1, 2 for 1 model; give each model a step of its own"),
        (["--problems=/no/such.jsonl"], "data.problems = '/no/such.jsonl' is not a file"),
        (["--max-tokens=0"], "max_tokens = 0 leaves nothing"),
        (["--no-demonstrations"], "samples = 0 and no demonstration is read"),
    ],
)
def test_arguments_that_cannot_be_used(capsys, arguments, sentence):
    assert cli.main(["tokens", "--model=tiny", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_hostile_texts_do_not_reach_the_terminal():
    table = pd.DataFrame({name: [np.nan] * 5 for name in TOKEN_COLUMNS}).assign(
        run="m", step=0, problem="p", row=0, position=range(5), token_id=1, text="\x1b[31m</script>\n", kind="on_policy",
        entropy=1.0, temperature=1.0, logp=-1.0, kept=True,
    )  # fmt: skip
    printed = reading.format_reading(reading.Reading(table=table, dropped={}))
    assert "\x1b" not in printed and r"\x1b[31m</script>\n" in printed
    assert math.isclose(float(printed.splitlines()[2].split()[3]), 1.0)
