"""Compare plans: of one model on many boards, of many sizes on one board, of several formats."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.formats.base import AUTO, FORMATS, format_of_engine
from boardfit.converters.formats.measured import divergence_ratio
from boardfit.converters.plan.candidate import Candidate
from boardfit.converters.plan.choose import choose_candidate
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.make import answer_seconds, plan_any
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import Planner
from boardfit.converters.plan.text import speed_cells
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity, TargetTensor
from boardfit.device_profiles.models import KnownModel, known_models
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DeadlineError, DoesNotFitError, EdgeError, EngineError, UsageError
from boardfit.edge.report.rows import align_columns
from boardfit.edge.terminal.output import echo
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes, format_seconds, printable

# -- boards ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoardRow:
    """One board: the plan chosen there, or None and why not."""

    profile: DeviceProfile
    chosen: Candidate | None
    why: str = ""


def plan_boards(
    spec: ModelSpec,
    profiles: Iterable[DeviceProfile],
    options: PlanOptions,
    *,
    learned: Learned | None = None,
) -> list[BoardRow]:
    """Every board with its plan; those that reach what was asked first, the smallest RAM first."""
    scale = WeighingScale(spec, has_imatrix=options.has_imatrix)
    rows = []
    for profile in profiles:
        chosen, why = None, ""
        try:
            planner = Planner(spec, profile, options, scale=scale, learned=learned)
            chosen = choose_candidate(planner)
        except (DoesNotFitError, DeadlineError, EngineError, UsageError) as error:
            why = _why_not(error)
        rows.append(BoardRow(profile, chosen, why))
    return sorted(rows, key=lambda r: (r.chosen is None, r.profile.ram_bytes, r.profile.id))


def _why_not(error: EdgeError) -> str:
    """The reason in a few words, for a table."""
    if isinstance(error, DoesNotFitError):
        return f"{format_bytes(error.shortfall_bytes)} too much"
    if isinstance(error, DeadlineError):
        return "no speed known" if "no speed is known" in str(error) else "too slow"
    return "the engine does not run there" if isinstance(error, EngineError) else str(error)


def board_lines(spec: ModelSpec, rows: Sequence[BoardRow], options: PlanOptions) -> list[str]:
    """The boards as a table, those that will not do named with the reason."""
    width = max((len(row.profile.id) for row in rows), default=5)
    lines = [
        f"{printable(spec.name)}: {sum(bool(row.chosen) for row in rows)} of {len(rows)} boards",
        "",
        f"  {'board':<{width}}  {'free':>9}  recipe   context  {'peak':>9}"
        "    decode       first token",
    ]
    for row, c in ((row, row.chosen) for row in rows if row.chosen):
        lines.append(
            f"  {row.profile.id:<{width}}  {format_bytes(row.profile.free_ram_bytes):>9}"
            f"  {c.recipe:<8} {c.n_ctx:>7}  {format_bytes(c.peak_bytes):>9}"
            f"  {speed_cells(c, options.n_prompt)}  {c.describe_basis(row.profile)}"
        )
    bad = [row for row in rows if row.chosen is None]
    if bad:
        lines += ["", "  these do not fit, or are too slow:"]
        lines += [f"  {row.profile.id:<{width}}  {row.why}" for row in bad]
    return lines


def board_record(row: BoardRow, options: PlanOptions) -> dict[str, Any]:
    """One board as a JSON-able object."""
    c = row.chosen
    record: dict[str, Any] = {"device": row.profile.id, "reached": c is not None, "why": row.why}
    if c is not None:
        record |= {**_figures(c, options), "basis": c.describe_basis(row.profile)}
    return record


def _figures(chosen: Candidate, options: PlanOptions) -> dict[str, Any]:
    return {
        "recipe": chosen.recipe,
        "n_ctx": chosen.n_ctx,
        "peak_bytes": chosen.peak_bytes,
        "decode_tps": chosen.user_tps,
        "ttft_s": chosen.ttft_s(options.n_prompt),
    }


# -- sizes -----------------------------------------------------------------------------------------


#: One public dense model for each size (`device_profiles/models.toml`).
SIZES = (
    "smollm-135m", "smollm-360m", "qwen3-0.6b", "llama-3.2-1b", "qwen3-1.7b", "llama-3.2-3b",
    "qwen3-4b", "llama-3.1-8b", "qwen3-14b", "qwen2.5-32b", "llama-3.1-70b",
)  # fmt: skip


@dataclass(frozen=True)
class SizeRow:
    """One size on one board. `chosen` is None when it does not fit, or not in time: see `why`."""

    model: KnownModel
    n_params: int
    chosen: Candidate | None
    why: str = ""


def plan_sizes(profile: DeviceProfile, options: PlanOptions) -> list[SizeRow]:
    """Every size from the smallest on; after two that do not fit, the larger ones are left out."""
    rows: list[SizeRow] = []
    for model in (known_models()[name] for name in SIZES):
        spec, chosen, why = make_hollow_spec(model), None, ""
        try:
            chosen = choose_candidate(Planner(spec, profile, options))
        except DoesNotFitError as error:
            why = _why_not(error)
        except DeadlineError:
            why = "too slow for what was asked"
        rows.append(SizeRow(model, spec.shape.n_params, chosen, why))
        if len(rows) > 2 and not any(row.chosen for row in rows[-2:]):
            break
    return rows


def size_lines(profile: DeviceProfile, rows: list[SizeRow], options: PlanOptions) -> list[str]:
    """The rows as a table for people."""
    lines = [
        f"{profile.name}: {format_bytes(profile.free_ram_bytes)} free for a model"
        f" ({profile.basis})",
        "",
        "  size   like            recipe   context       peak    decode       first token",
    ]
    for row in rows:
        head = f"  {row.n_params / 1e9:>4.1f}B  {row.model.name:<15}"
        c = row.chosen
        if c is None:
            lines.append(f"{head} {row.why}")
            continue
        lines.append(
            f"{head} {c.recipe:<8} {c.n_ctx:>7}  {format_bytes(c.peak_bytes):>9}"
            f"  {speed_cells(c, options.n_prompt)}"
        )
    lines.append(
        f"  decode in tokens/s, first token after a question of {options.n_prompt} tokens"
        + (f", for each of {options.n_users} users" if options.n_users > 1 else "")
    )
    return lines


def size_record(
    profile: DeviceProfile, rows: list[SizeRow], options: PlanOptions
) -> dict[str, Any]:
    """The rows as one JSON-able object; null where a size does not fit or no speed is known."""
    out = []
    for row in rows:
        c = row.chosen
        entry: dict[str, Any] = {"n_params": row.n_params, "like": row.model.name}
        entry |= {"fits": c is not None, "why": row.why}
        if c is not None:
            entry |= _figures(c, options)
        out.append(entry)
    return {"device": profile.id, "basis": profile.basis, "sizes": out}


def make_hollow_spec(model: KnownModel) -> ModelSpec:
    """A spec with the names and shapes of a public model and no data behind them."""

    def refuse(start: int, stop: int) -> np.ndarray:
        raise AssertionError("a hollow model has no data")

    tensors = tuple(
        TargetTensor(name, shape, "BF16", refuse, "F32" if len(shape) == 1 else None)
        for name, shape in _shapes(model)
    )
    numbers = {
        "block_count": model.layers,
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv,
    }
    metadata = (
        KeyValue("general.architecture", "llama", GGUFValueType.STRING),
        *(KeyValue(f"llama.{key}", n, GGUFValueType.UINT32) for key, n in numbers.items()),
    )
    identity = SourceIdentity("catalogue", model.repo, {}, "0" * 64)
    return ModelSpec(model.name, "llama", model.shape(), metadata, tensors, identity)


def _shapes(model: KnownModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(GGUF name, row-major shape) of a model's tensors, as Llama names them. Norms of what is no
    plain Llama are left out: they are less than a thousandth.
    """
    is_mixed = model.experts or model.plain_ff or model.per_layer
    if not is_mixed and model.n_attention >= model.layers:
        yield "output_norm.weight", (model.embd,)
        for i in range(model.layers):
            yield f"blk.{i}.attn_norm.weight", (model.embd,)
            yield f"blk.{i}.ffn_norm.weight", (model.embd,)
    seen = Counter[str]()
    for matrix in model.matrices():
        n_rows = matrix.n_rows // matrix.n_experts
        shape: tuple[int, ...] = (n_rows, matrix.n_per_row)
        if matrix.n_experts > 1:
            shape = (matrix.n_experts, *shape)
        rest = matrix.name.removeprefix("blk.")
        if rest == matrix.name:
            yield rest, shape
            continue
        if matrix.n_experts > 1:
            rest = rest.replace(".weight", "_exps.weight")
        for _ in range(matrix.count):
            yield f"blk.{seen[rest]}.{rest}", shape
            seen[rest] += 1


# -- formats ---------------------------------------------------------------------------------------


def echo_format_plans(
    spec: ModelSpec,
    profiles: Sequence[DeviceProfile],
    formats: Sequence[str],
    options: PlanOptions,
    learned: Learned,
    *,
    as_json: bool,
) -> None:
    """Print one plan per board and format. A refusal is raised where it is the only one."""
    wanted = list(FORMATS) if AUTO in formats else list(formats)
    for number, profile in enumerate(profiles):
        plans: dict[str, Plan] = {}
        refused: dict[str, EdgeError] = {}
        for name in wanted:
            try:
                plans[name] = plan_any(spec, profile, name, options, learned)
            except EdgeError as error:
                if len(profiles) * len(wanted) == 1:
                    raise
                refused[name] = error
        taken = plan_any(spec, profile, AUTO, options, learned) if AUTO in formats else None
        if as_json:
            for name, plan in plans.items():
                echo(json.dumps(format_record(spec, name, plan, taken)))
            for name, why in refused.items():
                echo(json.dumps(refusal_record(why, device=profile.id, format=name)))
            continue
        echo(("\n" if number else "") + f"{printable(spec.name)} on {profile.name}\n")
        echo("\n".join(format_lines(plans, refused, taken, options)))


def format_lines(
    plans: dict[str, Plan], refused: dict[str, EdgeError], taken: Plan | None, options: PlanOptions
) -> list[str]:
    """A table of the plans, then the reasons of the one taken, or of a single one."""
    rows = [("format", "recipe", "context", "file", "peak", "prefill", "decode",
             f"answer to {options.n_prompt}", "divergence / Q4_0")]  # fmt: skip
    for name, plan in plans.items():
        ratio = divergence_ratio(plan.recipe)
        prefill = "–" if plan.prefill_tps is None else f"{plan.prefill_tps:.0f}"
        decode = "–" if plan.decode_tps is None else f"{plan.decode_tps:.1f}"
        file, peak = format_bytes(plan.artifact_bytes), format_bytes(plan.peak_bytes)
        answer = format_seconds(answer_seconds(plan, options.n_prompt))
        cells = (name, plan.recipe, str(plan.n_ctx), file, peak, prefill, decode, answer)
        rows.append((*cells, "–" if ratio is None else f"{ratio:.2f}"))
    found = align_columns(rows)
    found += [f"  {name}: {error}" for name, error in refused.items()]
    explained = taken or (next(iter(plans.values())) if len(plans) == 1 else None)
    if taken is not None:
        found += ["", f"  auto takes {format_of_engine(taken.engine).id}:"]
    if explained is not None:
        found += [f"    {reason}" for reason in explained.reasons]
    return found


def format_record(spec: ModelSpec, name: str, plan: Plan, taken: Plan | None) -> dict[str, Any]:
    """One plan as a JSON-able object."""
    return {
        "model": spec.name,
        "device": plan.device,
        "format": name,
        "taken": None if taken is None else taken.engine == plan.engine,
        "plan": {**plan.to_dict(), "peak_bytes": plan.peak_bytes},
        "divergence_ratio": divergence_ratio(plan.recipe),
    }


def refusal_record(error: EdgeError, **place: object) -> dict[str, Any]:
    """Why a board or a format is refused, as a JSON-able object."""
    why = {"error": type(error).__name__, "message": str(error), "next_step": error.next_step}
    return {**place, **why}
