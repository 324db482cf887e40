"""Show, without a model, which model sizes a board holds at 4 bits, and how fast they run.

Each size stands for a public model of that many parameters; models of other shapes differ by some
ten percent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.plan.cells import speed_cells
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import Candidate, Planner
from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity, TargetTensor
from boardfit.device_profiles.models import KnownModel, known_models
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DeadlineError, DoesNotFitError
from boardfit.edge.units import format_bytes

#: One public dense model for each size (`device_profiles/models.toml`).
SIZES = (
    "smollm-135m", "smollm-360m", "qwen3-0.6b", "llama-3.2-1b", "qwen3-1.7b", "llama-3.2-3b",
    "qwen3-4b", "llama-3.1-8b", "qwen3-14b", "qwen2.5-32b", "llama-3.1-70b",
)  # fmt: skip


@dataclass(frozen=True)
class SizeRow:
    """One size on one board. `chosen` is None when it does not fit, or not in time; `why` says by
    how much.
    """

    model: KnownModel
    n_params: int
    chosen: Candidate | None
    why: str = ""


def size_rows(profile: DeviceProfile, options: PlanOptions) -> list[SizeRow]:
    """Every size from the smallest on; after two that do not fit, the larger ones are left out."""
    rows: list[SizeRow] = []
    for name in SIZES:
        model = known_models()[name]
        spec = hollow_spec(model)
        chosen, why = None, ""
        try:
            chosen = Planner(spec, profile, options).choose()
        except DoesNotFitError as error:
            why = f"{format_bytes(error.shortfall_bytes)} too much"
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
            f"  {speed_cells(c, options)}"
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
            entry |= {
                "recipe": c.recipe,
                "n_ctx": c.n_ctx,
                "peak_bytes": c.peak_bytes,
                "decode_tps": c.user_tps(options.n_users),
                "ttft_s": c.ttft_s(options.n_prompt, options.n_users),
            }
        out.append(entry)
    return {"device": profile.id, "basis": profile.basis, "sizes": out}


def hollow_spec(model: KnownModel) -> ModelSpec:
    """A spec with the names and shapes of a dense public model and no data behind them."""

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
    """(GGUF name, row-major shape) of a dense model's tensors, as Llama names them."""
    wide, narrow = model.heads * model.head, model.kv * model.head
    yield "token_embd.weight", (model.vocab, model.embd)
    for i in range(model.layers):
        yield f"blk.{i}.attn_norm.weight", (model.embd,)
        yield f"blk.{i}.attn_q.weight", (wide, model.embd)
        yield f"blk.{i}.attn_k.weight", (narrow, model.embd)
        yield f"blk.{i}.attn_v.weight", (narrow, model.embd)
        yield f"blk.{i}.attn_output.weight", (model.embd, wide)
        yield f"blk.{i}.ffn_norm.weight", (model.embd,)
        yield f"blk.{i}.ffn_gate.weight", (model.ff, model.embd)
        yield f"blk.{i}.ffn_up.weight", (model.ff, model.embd)
        yield f"blk.{i}.ffn_down.weight", (model.embd, model.ff)
    yield "output_norm.weight", (model.embd,)
    if not model.tied:
        yield "output.weight", (model.vocab, model.embd)
