"""A run's plan (:mod:`prefix_rft_lab.tools.planning`) in words: what ``prefix-rft train --plan`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from prefix_rft_lab.algorithm import methods
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.tables import format_table
from prefix_rft_lab.tools.planning import (
    CARDS,
    MASTER_BYTES,
    PHASES,
    ROOM,
    RunPlan,
    StagePlan,
    Throughput,
    passes,
    plan,
    rows_at_once,
    short,
    throughput_for,
)


def format_plan(found: RunPlan, throughput: Throughput) -> str:
    """The plan as text, 120 columns: stages, memory, cards, time, disk, and what was assumed."""
    config, model = found.config, found.model
    lines = [
        f"{config.name}: {methods.get(config.method).title}; planned from the config, no weights loaded, no problem read",
        "",
        *_labelled(
            "model",
            [
                f"{model.path}: {model.parameters:,} parameters",
                f"{model.layers} layers of {model.heads} heads of {model.head_dim} ({model.kv_heads} of keys and values), vocabulary {model.vocab:,}",
            ],
        ),
    ]
    for stage in found.stages:
        lines += _labelled(stage.name, _stage_lines(found, stage))
    lines += _labelled("evaluation", [f"{found.evaluation_rows:,} rows sampled in all, at most"])
    table: list[tuple[str, ...]] = [("memory", "GiB", "held during", "sum")]
    for part in found.parts:
        when = "all" if part.phases == PHASES else ", ".join(part.phases)
        table.append((part.name, "?" if part.bytes is None else _gib(part.bytes), when, part.sum))
    lines += ["", format_table(table), "", *_peaks(found), "", format_table(_cards(found)), ""]
    lines += [*_times(found, throughput), "", *_disk(found), "", *_assumptions(found)]
    return "\n".join(line.rstrip() for line in lines)


def plans(configs: Sequence[RunConfig], flops: float | None = None, response_tokens: int | None = None) -> str:
    """What each method would be; its seeds are alike.

    Args:
        flops: FLOP/s that times are estimated with; measured here by default, or that of a GPU where the run does not fit.
        response_tokens: mean length of a response, in tokens; the longest allowed by default.

    Raises:
        ConfigError: a rate or length that cannot be used.
    """
    if flops is not None and not 0 < flops < float("inf"):
        raise ConfigError(f"--flops {flops:g} is no rate; give FLOP/s above 0, e.g. 4e14")
    texts = []
    for method in dict.fromkeys(config.method for config in configs):
        alike = [config for config in configs if config.method == method]
        found = plan(alike[0], response_tokens=response_tokens)
        rate = Throughput(flops=flops, source="given by --flops") if flops else throughput_for(found)
        many = f"\n{len(alike)} seeds: as many runs like this one" if len(alike) > 1 else ""
        texts.append(format_plan(found, rate) + many)
    return "\n\n\n".join(texts)


def _labelled(label: str, texts: list[str]) -> list[str]:
    return [f"{label if i == 0 else '':<12}{text}" for i, text in enumerate(texts)]


def _stage_lines(found: RunPlan, stage: StagePlan) -> list[str]:
    config, rollout = found.config, found.config.rollout
    kinds = (
        (stage.plain, "sampled from the prompt"),
        (stage.hybrid, "that continue a prefix"),
        (stage.demonstrations, "demonstrations"),
    )
    rows = ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)
    total = stage.steps * stage.rows
    updates = f"{stage.updates:,} update{'s' if stage.updates > 1 else ''}"
    lines = [
        f"{stage.steps:,} steps of {stage.problems:,} problems x {stage.rows // stage.problems} = {stage.rows:,} rows;"
        f" {total:,} rows in all",
        f"rows of a step: {rows}",
        f"row: at most {rollout.max_prompt_tokens:,} prompt + {rollout.max_response_tokens:,} response = {found.longest:,} tokens;"
        f" step: {stage.rows:,} x {found.longest:,} = {stage.rows * found.longest:,}",
        f"{updates} per step, of {stage.micro_batches:,} micro-batches at most"
        f" (micro_batch_tokens = {config.micro_batch_tokens:,}, {rows_at_once(config):,} of the longest rows)",
    ]
    if stage.replay:
        lines.append(
            f"and a second update on {stage.replay:,} demonstrations once so many problems were solved by no row"
        )
    return lines


def _peaks(found: RunPlan) -> list[str]:
    lines = []
    for phase in PHASES:
        held = [part for part in found.parts if phase in part.phases]
        if phase != "sampling" and not found.stages:
            continue
        numbers = " + ".join(_gib(part.bytes) for part in held if part.bytes is not None)
        unknown = " + ?" if any(part.bytes is None for part in held) else ""
        lines += _labelled(
            phase, [f"{numbers}{unknown} = {_gib(found.bytes_in(phase))} GiB{' at least' if unknown else ''}"]
        )
    return lines


def _cards(found: RunPlan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("GPU", "fits on one", "weights, gradients and AdamW sharded by FSDP (not in the kit yet)")
    ]
    unknown = any(part.bytes is None for part in found.parts)
    for gib in CARDS:
        number = found.cards(gib)
        shared = "not needed" if number == 1 else f"on {number} at least"
        if number is None:
            rest = max(
                sum(part.bytes or 0 for part in found.parts if phase in part.phases and not part.sharded)
                for phase in PHASES
            )
            shared = f"on no number: the rest is {_gib(rest)} GiB on each"
        one = "yes" if number == 1 else "no"
        rows.append((f"{gib} GB", f"{one}{' (activations left out)' if unknown and number == 1 else ''}", shared))
    return rows


def _times(found: RunPlan, throughput: Throughput) -> list[str]:
    model, tokens, rate = found.model, found.config.rollout.max_prompt_tokens + found.response_tokens, throughput.flops
    table: list[tuple[str, ...]] = [("time", "rows read", "FLOP", f"at {_power(rate)} FLOP/s", "times", "in all")]

    def add(name: str, rows: str, flops: float, count: int) -> None:
        table.append(
            (name, rows, _power(flops), _duration(flops / rate), f"{count:,}", _duration(count * flops / rate))
        )

    cost = passes(found.config)
    for stage in found.stages:
        if stage.sampled:
            add(f"{stage.name}: sampling", f"{stage.sampled:,}", stage.sampling_flops, stage.steps)
        trained = f"({stage.rows:,} + {stage.replay:,})" if stage.replay else f"{stage.rows:,}"
        first = f" + {stage.read:,} before" if stage.read else ""
        add(f"{stage.name}: update", f"{cost} x {trained}{first}", stage.update_flops, stage.steps)
    add("evaluation", f"{found.evaluation_rows:,}", found.evaluation_flops, 1)
    table.append(("the run", "", _power(found.flops), "", "", _duration(found.flops / rate)))
    dense, forward = 2.0 * model.multiplied * tokens, model.forward_flops(tokens)
    return [
        format_table(table),
        f"A row of {tokens:,} tokens: 2 x {short(model.multiplied)} parameters x {tokens:,} = {_power(dense)} FLOP, and"
        f" {_power(forward - dense)} of attention; backward {cost - 1} times that.",
        f"The rate is {throughput.source}.",
    ]


def _disk(found: RunPlan) -> list[str]:
    texts, count = [], found.model.parameters
    if found.stages:
        kept = found.config.records.keep_checkpoints
        each = found.checkpoint_bytes / count
        texts.append(
            f"checkpoint {short(count)} x {each:.0f} B (weights, AdamW) = {_gib(found.checkpoint_bytes)} GiB;"
            f" {kept} kept and one being written = {_gib((kept + 1) * found.checkpoint_bytes)} GiB"
        )
    if found.model_bytes:
        texts.append(f"final model {short(count)} x {MASTER_BYTES} B (float32) = {_gib(found.model_bytes)} GiB")
    return _labelled("disk", texts or ["no weights are written"])


def _assumptions(found: RunPlan) -> list[str]:
    config = found.config
    other = found.response_tokens != config.rollout.max_response_tokens
    texts = [
        "every problem has a demonstration; every row has a gradient and is as long as allowed"
        + (f" (time: {found.response_tokens:,} response tokens)" if other else ""),
        f"{ROOM:.0%} of a GPU's memory can be used, and a card of 24 GB holds 24 GiB",
        "not counted: what kernels, vLLM and a growing cache hold while they work; grading; weights read again for",
        "every sampled token, often slower than its FLOPs; a run reaches a part of the rate of plain products",
    ]
    if config.data.demonstration_fraction < 1:
        share = f"data.demonstration_fraction = {config.data.demonstration_fraction:g}"
        texts.append(f"{share}: the other problems have rows from the prompt alone")
    return _labelled("assumed", texts)


def _power(number: float) -> str:
    """Two digits: 4e14."""
    return f"{number:.2g}".replace("e+", "e")


def _gib(size: float) -> str:
    gib = size / 2**30
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2g}"


def _duration(seconds: float) -> str:
    """Two digits: what is estimated is no more exact."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 100 * length else f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.2g} s"
