"""Apply a family's rules to a checkpoint, and check that every tensor is used.

The checkpoint is walked in file order, the order in which upstream's converter writes. A tensor
that no rule knows, a missing one, or one of another shape is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from boardfit.converters.families.base import Checkpoint, SourceTensor
from boardfit.converters.families.layout import (
    ExpertStack,
    Shape,
    TensorRule,
    matrix,
    stack_reader,
    target_tensor,
)
from boardfit.converters.families.lazy import as_floats
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError
from boardfit.edge.units import printable

LayerRules = Callable[[int], Mapping[str, TensorRule]]

# Buffers of old checkpoints that no engine reads (upstream: conversion/base.py, `prepare_tensors`).
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")


def assemble(
    checkpoint: Checkpoint,
    *,
    family: str,
    n_layer: int,
    outer: Mapping[str, TensorRule],
    layer: LayerRules,
    experts: Callable[[int], Sequence[ExpertStack]] = lambda index: (),
    n_expert: int = 0,
    first: Sequence[TargetTensor] = (),
    stacks: Sequence[tuple[ExpertStack, int]] = (),
    layer_prefix: str = "model.layers.",
    rename: Callable[[str], str | None] = lambda name: name,
) -> list[TargetTensor]:
    """All target tensors, `first` before the rest, in the checkpoint's order.

    `outer` holds rules by full source name, `layer(i)` those of layer `i` by the name after
    `layer_prefix` and the number, `experts(i)` its stacks of experts. `rename` maps a source name
    to the one the rules use, or to None to drop it (a vision tower). Stacks of experts appear where
    the layer's last expert tensor stands, in the order given, as upstream writes them. `stacks` are
    those outside the layers, by full source name and with their number of tensors.

    Raises InputError that names the tensors which are unknown, missing or of the wrong shape.
    """
    made = list(first)
    numbered = re.compile(re.escape(layer_prefix) + r"(\d+)\.(.+)")
    rules = [layer(i) for i in range(n_layer)]
    pools = [_ExpertPool(f"blk.{i}.", experts(i), n_expert) for i in range(n_layer)]
    outer_pools = [_ExpertPool("", [stack], count) for stack, count in stacks]
    seen: set[str] = set()
    unknown: list[str] = []
    for name in checkpoint.names():
        known_as = rename(name)
        if known_as is None or known_as.endswith(_BUFFERS):
            continue
        match = numbered.fullmatch(known_as)
        if match and int(match[1]) < n_layer:
            index, inner = int(match[1]), match[2]
            rule, prefix = rules[index].get(inner), f"blk.{index}."
            if rule is None and pools[index].is_waiting_for(inner):
                made += pools[index].add(inner, checkpoint.tensor(name))
                continue
        else:
            rule, prefix = outer.get(known_as), ""
            pool = next((pool for pool in outer_pools if pool.is_waiting_for(known_as)), None)
            if pool is not None:
                made += pool.add(known_as, checkpoint.tensor(name))
                continue
        if rule is None:
            unknown.append(name)
            continue
        seen.add(known_as)
        source = checkpoint.tensor(name)
        check_shape(source, rule.shape)
        made += rule.build(prefix + rule.target, source)
    _refuse_unknown(unknown, family, n_layer)
    _refuse_missing(seen, outer, rules, pools, outer_pools, layer_prefix, family)
    return made


class _ExpertPool:
    """Collects the tensors of stacks that belong together until all are there."""

    def __init__(self, prefix: str, stacks: Sequence[ExpertStack], n_expert: int) -> None:
        self._prefix, self._stacks, self._n_expert = prefix, stacks, n_expert
        self._waiting = {stack.source.format(e): stack for stack in stacks for e in range(n_expert)}
        self._got: dict[str, SourceTensor] = {}

    def is_waiting_for(self, inner: str) -> bool:
        return inner in self._waiting

    def add(self, inner: str, source: SourceTensor) -> list[TargetTensor]:
        check_shape(source, self._waiting[inner].shape)
        self._got[inner] = source
        if len(self._got) < len(self._waiting):
            return []
        return [self._stack(stack) for stack in self._stacks]

    def missing(self) -> list[str]:
        return [inner for inner in self._waiting if inner not in self._got]

    def _stack(self, stack: ExpertStack) -> TargetTensor:
        sources = [self._got[stack.source.format(e)] for e in range(self._n_expert)]
        if any(source.dtype != sources[0].dtype for source in sources):
            # An adapter or a quantizer touched some experts only.
            sources = [as_floats(source) for source in sources]
        return target_tensor(
            self._prefix + stack.target,
            (self._n_expert, *stack.shape),
            sources[0].dtype,
            stack_reader([matrix(source) for source in sources]),
            f"{sources[0].name} and {self._n_expert - 1} more",
        )


def check_kinds(
    names: Iterable[str | None], key: str, kinds: Sequence[str], marks: Mapping[str, str]
) -> None:
    """Raises InputError when `config.json` calls a layer another kind than its tensors show.

    `key` lists the kinds, one per layer; `marks` has the tensor by which a kind is known.
    """
    present = set(names)
    for i, kind in enumerate(kinds):
        for marked, tensor in marks.items():
            if (f"model.layers.{i}.{tensor}" in present) != (kind == marked):
                has = "lacks" if kind == marked else "has"
                raise InputError(
                    f"config.json: {key} calls layer {i} {printable(kind)!r}, but the checkpoint "
                    f"{has} its {tensor}",
                    next_step="check that config.json belongs to these weights",
                )


def check_shape(source: SourceTensor, expected: Shape) -> None:
    """Raises InputError when a source tensor is not of the shape that config.json implies."""
    if source.shape != expected:
        raise InputError(
            f"tensor {printable(source.name)} has shape {list(source.shape)}, but config.json "
            f"implies {list(expected)}",
            next_step="check that config.json belongs to these weights",
        )


def _refuse_unknown(unknown: Sequence[str], family: str, n_layer: int) -> None:
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"tensor {printable(unknown[0])}{more} is unknown to family {family} with {n_layer} "
            "layers; leaving it out would silently change the model",
            next_step="check model_type and num_hidden_layers in config.json; adapters must be "
            "merged into the weights first",
        )


def _refuse_missing(
    seen: set[str],
    outer: Mapping[str, TensorRule],
    rules: Sequence[Mapping[str, TensorRule]],
    pools: Sequence[_ExpertPool],
    outer_pools: Sequence[_ExpertPool],
    layer_prefix: str,
    family: str,
) -> None:
    missing = [name for name, rule in outer.items() if not rule.optional and name not in seen]
    missing += [name for pool in outer_pools for name in pool.missing()]
    for index, layer in enumerate(rules):
        prefix = f"{layer_prefix}{index}."
        missing += [
            prefix + inner
            for inner, rule in layer.items()
            if not rule.optional and prefix + inner not in seen
        ]
        missing += [prefix + inner for inner in pools[index].missing()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"tensor {missing[0]}{more} is missing from the checkpoint (family {family})",
            next_step="download the checkpoint again; every file that the index names is needed",
        )
