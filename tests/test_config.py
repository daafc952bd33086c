"""Configs: the same in Python, YAML and JSON; bad values are refused in one sentence."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from prefix_rft_lab.config import PRESETS, SHOWN_ELSEWHERE, ConfigError, RunConfig, flatten, preset
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.trainer import train


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_round_trip(tmp_path, name, suffix):
    config = preset(name, seed=7, **{"data.columns": {"problem": "Frage"}, "rl.lr": 3e-7, "rl.betas": (0.9, 0.95)})
    path = tmp_path / f"config.{suffix}"
    path.write_text(config.to_yaml() if suffix == "yaml" else json.dumps(config.to_dict()), encoding="utf-8")
    again = RunConfig.load(path)
    assert again == config
    assert again.hash() == config.hash()
    assert RunConfig.from_dict(config.to_dict()) == config


def test_yaml_keeps_text_and_small_numbers(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: Größe\nrl: {steps: 3, lr: 1e-6}\nmodel: {instruction: 'Löse:\\n'}\n", encoding="utf-8")
    config = RunConfig.load(path)
    assert (config.name, config.rl.lr, config.model.instruction) == ("Größe", 1e-6, "Löse:\\n")
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.load(path) == config


def test_hash_names_everything_but_name_and_seed_and_where_else_it_is_shown():
    config = preset("tiny")
    assert config.replace(name="other", seed=9).hash() == config.hash()
    assert config.replace(**{"records.writers": "wandb", "records.project": "mine"}).hash() == config.hash()
    assert set(SHOWN_ELSEWHERE) <= set(dict(flatten(config.to_dict())))
    values = dict(flatten(config.to_dict()))
    changed = {"prefix.keep_fraction": 0.5, "method": "rft", "data.seed": 1, "threads": 2, "loss.clip_high": 0.28}
    hashes = {config.replace(**{name: value}).hash() for name, value in changed.items()}
    assert len(hashes | {config.hash()}) == len(changed) + 1
    assert set(changed) <= set(values)


def test_hash_is_of_departures_from_the_defaults(monkeypatch):
    """A later version may add a field: runs without it keep their names, as long as it has its default."""
    before = preset("tiny").hash()
    values = RunConfig.to_dict

    def with_a_new_field(self):
        return values(self) | {"later": {"added": "default"}}

    monkeypatch.setattr(RunConfig, "to_dict", with_a_new_field)
    assert preset("tiny").hash() == before


def test_replace_changes_one_field_and_leaves_the_original():
    config = preset("tiny")
    other = config.replace(**{"prefix.low": 0.1, "seed": 3, "data.columns.problem": "question"})
    assert (other.prefix.low, other.seed, other.data.columns) == (0.1, 3, {"problem": "question"})
    assert (config.prefix.low, config.seed, config.data.columns) == (0.05, 0, {})
    back = other.replace(**{"prefix.low": 0.05, "seed": 0, "data.columns": {}})
    assert back == config
    with pytest.raises(Exception, match="frozen"):
        config.seed = 1


BAD = [
    ({"prefix.high": 1.5}, "prefix.high", "1.5", "less than or equal to 1"),
    ({"prefix.low": -0.1}, "prefix.low", "-0.1", "greater than or equal to 0"),
    ({"prefix.low": float("nan")}, "prefix.low", "nan", "cannot be used"),
    ({"prefix.low": 0.9, "prefix.high": 0.5}, "prefix.low", "0.9", "raise prefix.high"),
    ({"rollout.hybrid_rows": 9}, "rollout.hybrid_rows", "9", "lower it"),
    ({"rollout.rows_per_problem": 0}, "rollout.rows_per_problem", "0", "greater than or equal to 1"),
    ({"rl.lr": 0}, "rl.lr", "0", "greater than 0"),
    ({"rl.lr": float("inf")}, "rl.lr", "inf", "finite"),
    ({"rl.steps": 2.5}, "rl.steps", "2.5", "integer"),
    ({"rl.betas": [0.9, 1.5]}, "rl.betas.1", "1.5", "less than 1"),
    ({"seed": "zero"}, "seed", "'zero'", "integer"),
    ({"prefix": 3}, "prefix", "3", "dictionary"),
    ({"rollout.max_prompt_token": 5}, "rollout.max_prompt_token", "5", "did you mean rollout.max_prompt_tokens"),
    ({"prefx.low": 0.1}, "prefx.low", "0.1", "did you mean prefix.low"),
    ({"zzzz": 0.1}, "zzzz", "0.1", "known fields are"),
    ({"seed.x": 1}, "seed.x", "1", "did you mean"),
]


@pytest.mark.parametrize(("changes", "field", "value", "remedy"), BAD)
def test_bad_value_is_one_sentence_with_field_value_and_remedy(changes, field, value, remedy):
    with pytest.raises(ConfigError) as caught:
        preset("tiny", **changes)
    sentence = str(caught.value)
    assert sentence.startswith(f"{field} = {value}")
    assert remedy in sentence
    assert "\n" not in sentence
    assert caught.value.__cause__ is None


def test_a_remedy_never_names_a_field_twice():
    with pytest.raises(ConfigError) as caught:
        preset("tiny", **{"sede": 1})
    names = str(caught.value).split("did you mean ")[1].rstrip("?").split(" or ")
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prefix": {"lo": 0.1}}, "prefix.lo = 0.1 is not a field of the config; did you mean low or loss?"),
        ({"zzzzzzz": 1}, "known names are name, method"),
        ({"rl": {"lr": 1e-3}}, "rl.steps is missing; give it a value"),
    ],
)
def test_bad_mapping(values, words):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(values)
    assert words in str(caught.value)


def test_unknown_preset_and_method_name_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"preset = 'huge' is not known; use one of tiny, smol"):
        preset("huge")
    with pytest.raises(ConfigError, match=r"method = 'ppo' is not known") as caught:
        train(preset("tiny", method="ppo"), out=tmp_path, progress=False)
    assert all(name in str(caught.value) for name in METHODS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("seed: [1\nname: x", "is not valid YAML"), ("- 1\n- 2", "holds no mapping"), ("", "holds no mapping")],
)
def test_bad_file(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="is not a file"):
        RunConfig.load(tmp_path / "nowhere.yaml")


def test_every_field_is_documented():
    def fields(model, prefix=""):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from fields(field.annotation, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", field.description

    assert [name for name, text in fields(RunConfig) if not text] == []
