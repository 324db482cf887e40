"""Predictions against published rows: each figure is a case, or set aside with a reason.

    cases, aside = judge(read_rows(path))

An error is |predicted / measured - 1|; a bound covers a figure between predicted / (1 + bound) and
predicted × (1 + bound).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from boardfit.device_profiles.cost.engine_classes import EngineClass
from boardfit.device_profiles.cost.memory import StoredTensor
from boardfit.device_profiles.cost.speed import (
    SpeedEstimate,
    default_threads,
    estimate_speed,
    is_unusual,
)
from boardfit.device_profiles.models import KnownModel
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.shape import ModelShape
from lab.speed.engine_classes import FIXED_THREADS
from lab.speed.models import find_model, similar_model
from lab.speed.published import (
    Quant,
    accelerator_kind,
    active_params_b,
    engine_class,
    read_quant,
    stated_clocks,
    whole_row_reasons,
)
from lab.speed.published_boards import bare_id, find_board
from lab.speed.published_rows import Row
from lab.speed.quants import model_tensors

METRICS = ("decode", "prefill")
# Prompts this short measure the start of the engine, not its products.
SHORT_PROMPT = 24
# What runs beside the weights on a board: engine, compute buffers, a short context.
_BESIDE_WEIGHTS = 0.25e9
# Unknown architectures (a stand-in from a parameter count) get this much wider bounds.
_UNKNOWN_MODEL_FACTOR = 1.5


@dataclass(frozen=True)
class Case:
    """One published figure (tokens per second) and its prediction."""

    line: int
    metric: str
    board: str
    soc: str
    engine: EngineClass
    model: str
    model_known: bool
    measured: float
    predicted: float
    bound: float
    unusual: bool = False

    @property
    def error(self) -> float:
        return abs(self.predicted / self.measured - 1)

    @property
    def covered(self) -> bool:
        return 1 / (1 + self.bound) <= self.measured / self.predicted <= 1 + self.bound

    def scaled(self, factor: float) -> Case:
        return replace(self, predicted=self.predicted * factor)


@dataclass(frozen=True)
class Aside:
    """A figure (or, with no metric, a whole row) that is not compared, and why."""

    line: int
    metric: str | None
    engine: str
    board: str
    reason: str


@dataclass(frozen=True)
class _Subject:
    """What a row is about."""

    row: Row
    engine: EngineClass
    profile: DeviceProfile
    model: KnownModel
    quant: Quant
    n_default_threads: int


def judge(
    rows: Iterable[Row],
    adapt: Callable[[DeviceProfile], DeviceProfile] = lambda profile: profile,
) -> tuple[list[Case], list[Aside]]:
    """Every figure of the rows as a case or as set aside. `adapt` may change the boards first."""
    cases: list[Case] = []
    aside: list[Aside] = []
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        subject = _subject(row, again=row.content in seen)
        seen.add(row.content)
        if isinstance(subject, Aside):
            aside.append(subject)
            continue
        subject = replace(subject, profile=adapt(subject.profile))
        board, known, engine = bare_id(subject.profile), subject.model.exact, subject.engine
        for metric in METRICS:
            measured = row.number(f"{metric}_tps")
            if measured is None:
                continue
            reason, estimate = _figure_reason(subject, metric), _estimate(subject, metric)
            predicted = getattr(estimate, f"{metric}_tps")
            if reason is None and predicted is None:
                reason = f"no estimate of {metric} for this engine class or board"
            if reason is not None:
                aside.append(Aside(row.line, metric, engine.name, board, reason))
                continue
            bound = getattr(estimate, f"{metric}_bound") * (1 if known else _UNKNOWN_MODEL_FACTOR)
            soc = subject.profile.soc or board
            model = subject.model.name
            cases.append(
                Case(
                    row.line, metric, board, soc, engine, model, known, measured, predicted, bound,
                    is_unusual(*_weights(subject.model, subject.quant.name)),
                )
            )  # fmt: skip
    return cases, aside


def _subject(row: Row, *, again: bool) -> _Subject | Aside:
    profile = find_board(row)
    engine = engine_class(row, profile)
    label = engine.name if engine else f"unknown ({accelerator_kind(row) or 'not stated'})"
    board = bare_id(profile) if profile else "without a profile"

    def aside(reason: str) -> Aside:
        return Aside(row.line, None, label, board, reason)

    for reason in whole_row_reasons(row):
        return aside(reason)
    if again:
        return aside("the same as an earlier row")
    if profile is None:
        return aside("no profile of this board")
    if engine is None:
        known = accelerator_kind(row) and row.runtime
        return aside(
            f"no engine class for the runtime {row.runtime[:40]!r}"
            if known
            else "accelerator or runtime not stated"
        )
    quant = read_quant(row)
    if quant is None:
        return aside("quantization not stated or not known")
    model = _find_model(row)
    if model is None:
        return aside("model not in the catalogue and its size not given")
    subject = _Subject(
        row, engine, stated_clocks(profile, row), model, quant, default_threads(profile)
    )
    file_bytes = _file_bytes(subject)
    expected = sum(tensor.n_bytes for tensor in _weights(model, quant.name)[0])
    if model.exact and not 0.4 < file_bytes / expected < 2.5:
        return aside("file size contradicts model and quantization")
    free = _ram(subject) - profile.memory.reserved_bytes
    if engine.on_cpu and file_bytes + _BESIDE_WEIGHTS > free:
        return aside("file does not fit the free RAM: pages are read again from storage")
    decode = row.number("decode_tps")
    if decode is not None and decode < 0.1:
        return aside("decode below 0.1 tokens/s: pages are read again from storage")
    return subject


def _find_model(row: Row) -> KnownModel | None:
    """The model by its name, by its name and the size beside it, or a stand-in of that size."""
    given = row.number("params_b")
    model = find_model(row.model) or (find_model(f"{row.model} {given:g}b") if given else None)
    if model is not None:
        return model
    size = re.search(r"(\d+(?:\.\d+)?) ?([bm])\b", row.model.lower())
    stated = float(size[1]) / (1000 if size[2] == "m" else 1) if size else 0.0
    params = active_params_b(row) or given or stated
    return similar_model(params) if 0.01 <= params <= 2000 else None


def _ram(subject: _Subject) -> float:
    given = subject.row.number("ram_gb")
    return given * 2**30 if given else float(subject.profile.ram_bytes)


@lru_cache(maxsize=512)
def _weights(model: KnownModel, quant: str) -> tuple[tuple[StoredTensor, ...], ModelShape]:
    return model_tensors(model, quant), model.shape()


def _file_bytes(subject: _Subject) -> float:
    size = subject.row.number("model_size_gb")
    tensors, _ = _weights(subject.model, subject.quant.name)
    return size * 1e9 if size else sum(tensor.n_bytes for tensor in tensors)


def _tensors(subject: _Subject) -> tuple[StoredTensor, ...]:
    """The model's tensors, their bytes scaled to the file's size where that is given."""
    tensors, _ = _weights(subject.model, subject.quant.name)
    ours = sum(tensor.n_bytes for tensor in tensors)
    if not subject.model.exact and active_params_b(subject.row):
        return tensors  # the stand-in has only the active parameters, the file all of them
    factor = _file_bytes(subject) / ours
    table = next(t.n_bytes for t in tensors if t.name == "token_embd.weight")
    is_gguf = subject.engine.name.startswith("llama.cpp")
    with_table = factor * ours / (ours + table)
    if is_gguf and subject.model.tied and factor > 1 and abs(with_table - 1) < factor - 1:
        # The file stores the embedding a second time as a head; a token reads only one of them.
        factor = with_table
    return tuple(replace(t, n_bytes=round(t.n_bytes * factor)) for t in tensors)


def _depth(row: Row) -> int:
    """Context depth at the middle of the generation. llama-bench (512 and 128 tokens by default)
    measures prompt and generation apart; a depth that the device text states is added.
    """
    prompt, generated = row.number("prompt_tokens") or 0, row.number("gen_tokens") or 0
    apart = (prompt, generated) in ((512, 128), (0, 128))
    return int((0 if apart else prompt) + generated / 2) + _stated_depth(row)


def _stated_depth(row: Row) -> int:
    stated = re.search(r"depth (\d{1,6})\b", row.device.lower())
    return int(stated[1]) if stated else 0


def _estimate(subject: _Subject, metric: str) -> SpeedEstimate:
    row, engine, profile = subject.row, subject.engine, subject.profile
    stated = int(row.number("threads") or 0) or FIXED_THREADS.get(engine.name, 0)
    threads = stated or subject.n_default_threads
    if metric == "decode" and "single-core decode" in row.runtime.lower():
        threads = 1
    depth = _depth(row) if metric == "decode" else 0
    return estimate_speed(
        _tensors(subject),
        _weights(subject.model, subject.quant.name)[1],
        replace(profile, sustained_share=None),  # published runs are short
        n_threads=min(threads, profile.n_cores),
        kv_type=subject.quant.kv_type,
        repack=True,
        depth=depth,
        # Attention of n tokens behind d others costs as much as that of n + 2 d from the start.
        n_prompt=max(1, int(row.number("prompt_tokens") or 512)) + 2 * _stated_depth(row),
        engine=engine,
    )


def _figure_reason(subject: _Subject, metric: str) -> str | None:
    if metric == "decode":
        return None
    row = subject.row
    prompt = row.number("prompt_tokens")
    if prompt is not None and prompt <= SHORT_PROMPT:
        return f"prompt of at most {SHORT_PROMPT} tokens: prefill measures the start"
    if prompt is None and re.search(r"short[- ](prompt|chat)", row.text):
        return f"prompt of at most {SHORT_PROMPT} tokens: prefill measures the start"
    return None


def without_own_bandwidth(profile: DeviceProfile) -> DeviceProfile:
    """A board without its measured bandwidth."""
    return replace(profile, memory=replace(profile.memory, bandwidth_sustained=None))
