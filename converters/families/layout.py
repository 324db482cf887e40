"""A checkpoint as families see it, and from source tensors to target tensors: rules and lazy
readers.

A rule holds the GGUF name, the shape that the configuration implies, and how rows are read. Rows
are read only when `TargetTensor.read` is called.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from boardfit.converters.spec import RowReader, TargetTensor
from boardfit.edge.errors import InputError


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in a checkpoint: its dtype as a ggml type name (`BF16`, `F16`, `F32`), its
    row-major shape, a zero-copy view over the mapped file (`BF16` as uint16), and `mxfp4`, the same
    rows as blocks of that type where the checkpoint stores it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray
    mxfp4: np.ndarray | None = None


class Checkpoint(Protocol):
    """A checkpoint as families see it: the parsed `config.json` and tensors by name."""

    config: Mapping[str, Any]

    def names(self) -> Iterable[str]:
        """All tensor names, in file order."""

    def tensor(self, name: str) -> SourceTensor:
        """One tensor. Raises InputError that names it and its shard when it is absent."""


Shape = tuple[int, ...]
Builder = Callable[[str, SourceTensor], list[TargetTensor]]

# Weights that the engine reads as float32 only, regardless of the recipe, besides norms, biases and
# vectors: the list in upstream's conversion/base.py, `prepare_tensors`, as far as our families
# have them.
_F32_WEIGHTS = re.compile(
    r"^blk\.\d+\.(ffn_gate_inp|ffn_gate_inp_shexp|shortconv\.conv|ssm_conv1d"
    r"|altup_correct_coef|altup_predict_coef)\.weight$"
)


@dataclass(frozen=True)
class TensorRule:
    """How one source tensor becomes target tensors. `target` is the GGUF name, in a layer without
    its `blk.N.`; `shape` the source's; `build` makes the target tensors from the full target name
    and the source. An `optional` tensor may be absent.
    """

    target: str
    shape: Shape
    build: Builder
    optional: bool = False


@dataclass(frozen=True)
class ExpertStack:
    """One weight of all experts of a layer, stored as one tensor per expert.

    `source` is the name within the layer with `{}` for the expert's number. The stack has shape
    `(n_expert, *shape)`.
    """

    source: str
    target: str
    shape: Shape


# Parts of a multimodal checkpoint that are not the language model.
OTHER_MODALITY = re.compile(
    r"^(model\.)?(vision_tower|vision_model|vision_embedder|visual|audio_tower|"
    r"multi_modal_projector|multimodal_projector|mm_projector|connector|embed_vision|"
    r"embed_audio)\."
)


def language_model_only(name: str) -> str | None:
    """`rename` for multimodal checkpoints: drops vision and audio parts and strips
    `language_model.` (upstream: conversion/base.py, `filter_tensors`).
    """
    if OTHER_MODALITY.match(name):
        return None
    return name.replace("language_model.", "", 1)


# -- rules ---------------------------------------------------------------------------------------


def make_rule(row: str, find: Callable[[str], int]) -> TensorRule:
    """The rule that a row of tensors.toml stands for; `find` gives sizes by name."""
    how, _, what = row.rpartition(": ")
    kind, *numbers = how.split() or [""]
    target, *sizes = what.split()
    shape, given = tuple(map(find, sizes)), tuple(map(find, numbers))
    if kind == "split":
        targets = target.split("+")
        return split([(name, shape[-2] // len(targets)) for name in targets], *shape)
    if kind == "interleave":
        return interleave_rows(target, *shape, n_head=given[0])
    if kind == "reshape":
        return reshape(target, *shape, to=given)
    if kind == "ignore":
        return ignore(*shape)
    if kind == "plus_one":
        return plus_one(target, *shape)
    if kind == "decay":
        return decay(target, *shape)
    return copy(target, *shape, optional=kind == "maybe")


def copy(target: str, *shape: int, optional: bool = False) -> TensorRule:
    """The tensor as it is."""

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        return [from_rows(name, source.shape, source, matrix(source))]

    return TensorRule(target, shape, build, optional)


def interleave_rows(target: str, *shape: int, n_head: int) -> TensorRule:
    """Rows of a query or key projection, reordered for interleaved rotary embeddings.

    Hugging Face rotates element `j` of a head with `j + d/2`; ggml's `LLAMA` rope rotates `2j` with
    `2j + 1`. So output row `2j + s` of a head is source row `s·d/2 + j` (upstream:
    conversion/llama.py, `permute`). A bias is reordered within its one row.
    """

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        order = interleaved_order(shape[0], n_head)
        return reorder(target, *shape, order=order).build(name, source)

    return TensorRule(target, shape, build)


def reorder(target: str, *shape: int, order: np.ndarray, axis: int = 0) -> TensorRule:
    """The same rows (or columns, `axis` 1) in another order; `order` has a source index for each.

    A vector is reordered within its one row. Middle axes of length 1 are dropped.
    """
    stored = (shape[0], *(n for n in shape[1:-1] if n > 1), *shape[1:][-1:])

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        if len(shape) == 1:
            return [from_rows(name, shape, source, source.data[order].reshape(1, -1))]
        rows = source.data.reshape(-1, shape[-1])

        def read(start: int, stop: int) -> np.ndarray:
            chosen: np.ndarray = rows[start:stop][:, order] if axis else rows[order[start:stop]]
            return chosen

        return [target_tensor(name, stored, source.dtype, read, source.name)]

    return TensorRule(target, shape, build)


def split(targets: Sequence[tuple[str, int]], *shape: int) -> TensorRule:
    """Consecutive row ranges of one tensor as tensors of their own. `targets` is (name, rows) along
    the second-to-last axis, for example gate and up of a fused `gate_up_proj`.
    """

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        prefix = name.removesuffix(targets[0][0])
        stack = source.data.reshape(-1, shape[-2], shape[-1])
        made, first = [], 0
        for part, count in targets:
            block = stack[:, first : first + count, :]
            read = stack_reader([block[i] for i in range(len(block))])
            size, origin = (*shape[:-2], count, shape[-1]), f"{source.name} rows {first}.."
            made.append(target_tensor(prefix + part, size, source.dtype, read, origin))
            first += count
        return made

    return TensorRule(targets[0][0], shape, build)


def reshape(target: str, *shape: int, to: Shape) -> TensorRule:
    """The same values in another shape (LFM2 drops the middle axis of its convolutions)."""

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        return [from_rows(name, to, source, source.data.reshape(-1, to[-1]))]

    return TensorRule(target, shape, build)


def plus_one(target: str, *shape: int) -> TensorRule:
    """A norm weight stored minus one, plus one.

    Upstream adds in float16 when the source is float16, else in float32 (conversion/base.py,
    `prepare_tensors`, widens everything but float16 before the family sees it): so do we.
    """

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        rows, half = matrix(source), source.dtype == "F16"

        def read(start: int, stop: int) -> np.ndarray:
            values = rows[start:stop] if half else to_f32(rows[start:stop], source.dtype)
            shifted: np.ndarray = values + values.dtype.type(1)
            return shifted

        return [target_tensor(name, shape, "F16" if half else "F32", read, source.name)]

    return TensorRule(target, shape, build)


def decay(target: str, n_head: int) -> TensorRule:
    """`-exp(A_log)`, one row per head. Computed in float64, so that the result is the nearest
    float32 on every processor; torch's is one unit in the last place off now and then.
    """

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        values = to_f32(source.data, source.dtype).reshape(-1, 1).astype(np.float64)

        def read(start: int, stop: int) -> np.ndarray:
            made: np.ndarray = (-np.exp(values[start:stop])).astype(np.float32)
            return made

        return [target_tensor(name, (n_head, 1), "F32", read, source.name)]

    return TensorRule(target, (n_head,), build)


def ignore(*shape: int) -> TensorRule:
    """A tensor that the artifact does not need; it may be absent."""
    return TensorRule("", shape, lambda name, source: [], optional=True)


# -- readers -------------------------------------------------------------------------------------


def target_tensor(
    name: str, shape: Shape, source_type: str, read: RowReader, origin: str
) -> TargetTensor:
    """A target tensor with `keep` set by upstream's rule for its name and dimensions."""

    def ready(start: int, stop: int) -> np.ndarray:
        # Rows that are computed when read (`lazy`) are computed here.
        return np.asarray(read(start, stop))

    return TargetTensor(name, shape, source_type, ready, keep_type(name, len(shape)), origin)


def from_rows(name: str, shape: Shape, source: SourceTensor, rows: np.ndarray) -> TargetTensor:
    """A target tensor that reads from a ready 2-D view of its source."""
    return target_tensor(name, shape, source.dtype, lambda a, b: rows[a:b], source.name)


def constant(name: str, values: np.ndarray, origin: str) -> TargetTensor:
    """A float32 tensor made from the configuration (rope factors)."""
    data = np.ascontiguousarray(values, dtype=np.float32)
    rows = data.reshape(-1, data.shape[-1])
    return target_tensor(name, data.shape, "F32", lambda start, stop: rows[start:stop], origin)


def keep_type(name: str, n_dims: int) -> str | None:
    """`F32` for tensors that upstream's converter always stores so (conversion/base.py,
    `prepare_tensors`): vectors, norms, everything but a `.weight`, routers, short convolutions.
    """
    always = (
        n_dims <= 1
        or name.endswith("_norm.weight")
        or not name.endswith(".weight")
        or _F32_WEIGHTS.match(name) is not None
    )
    return "F32" if always else None


def to_f32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values of a `BF16` (uint16), `F16` or `F32` array as float32, exactly."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def interleaved_order(n_rows: int, n_head: int) -> np.ndarray:
    """Source row of each output row of `interleave_rows`: int64 of length `n_rows`."""
    if n_head <= 0 or n_rows % (2 * n_head):
        raise InputError(
            f"{n_rows} query or key rows do not divide into {n_head} heads of an even size; "
            "rotary embeddings need pairs"
        )
    order: np.ndarray = np.arange(n_rows).reshape(n_head, 2, n_rows // n_head // 2)
    flat: np.ndarray = order.swapaxes(1, 2).reshape(-1)
    return flat


def matrix(source: SourceTensor) -> np.ndarray:
    """The source's data as a 2-D view of rows; a vector is one row."""
    return source.data.reshape(-1, source.shape[-1])


def stack_reader(blocks: Sequence[np.ndarray]) -> RowReader:
    """Reads rows over equally tall 2-D blocks laid end to end; copies only across a seam."""
    height = blocks[0].shape[0]

    def read(start: int, stop: int) -> np.ndarray:
        parts = [blocks[0][:0]] if start >= stop else []
        while start < stop:
            block, row = divmod(start, height)
            count = min(stop - start, height - row)
            parts.append(blocks[block][row : row + count])
            start += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return read
