"""Apply a family's rules to a checkpoint, and check that every tensor is used.

The checkpoint is walked in file order, the order in which upstream's converter writes. A tensor
that no rule knows, a missing one, or one of another shape is refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from boardfit.converters.families.layout import (
    Checkpoint,
    ExpertStack,
    Shape,
    SourceTensor,
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
    rename: Callable[[str], str | None] = lambda name: name,
) -> list[TargetTensor]:
    """All target tensors, `first` before the rest, in the checkpoint's order.

    `outer` holds rules by full source name, `layer(i)` those of layer `i` by the name after
    `model.layers.` and the number, `experts(i)` its stacks of experts. `rename` maps a source name
    to the one the rules use, or to None to drop it (a vision tower). Stacks of experts appear where
    the layer's last expert tensor stands, in the order given, as upstream writes them. `stacks` are
    those outside the layers, by full source name and with their number of tensors.

    Raises InputError that names the tensors which are unknown, missing or of the wrong shape.
    """
    # Source name → what stands before the target's name, and the rule or the stacks.
    wanted: dict[str, tuple[str, TensorRule | _ExpertPool]] = {}
    wanted |= {name: ("", rule) for name, rule in outer.items()}
    for stack, count in stacks:
        pool = _ExpertPool("", "", [stack], count)
        wanted |= {name: ("", pool) for name in pool.waiting}
    for i in range(n_layer):
        source_prefix, prefix = f"model.layers.{i}.", f"blk.{i}."
        wanted |= {source_prefix + name: (prefix, rule) for name, rule in layer(i).items()}
        pool = _ExpertPool(source_prefix, prefix, experts(i), n_expert)
        wanted |= {name: (prefix, pool) for name in pool.waiting}
    made = list(first)
    seen: set[str] = set()
    unknown: list[str] = []
    for name in checkpoint.names():
        known_as = rename(name)
        if known_as is None or known_as.endswith(_BUFFERS):
            continue
        if known_as not in wanted:
            unknown.append(name)
            continue
        seen.add(known_as)
        prefix, rule = wanted[known_as]
        source = checkpoint.tensor(name)
        if isinstance(rule, _ExpertPool):
            made += rule.add(known_as, source)
        else:
            check_shape(source, rule.shape)
            made += rule.build(prefix + rule.target, source)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"tensor {printable(unknown[0])}{more} is unknown to family {family} with {n_layer} "
            "layers; leaving it out would silently change the model",
            next_step="check model_type and num_hidden_layers in config.json; adapters must be "
            "merged into the weights first",
        )
    if missing := [n for n, (_, rule) in wanted.items() if n not in seen and not rule.optional]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"tensor {missing[0]}{more} is missing from the checkpoint (family {family})",
            next_step="download the checkpoint again; every file that the index names is needed",
        )
    return made


class _ExpertPool:
    """Collects the tensors of stacks that belong together until all are there."""

    optional = False

    def __init__(
        self, source_prefix: str, prefix: str, stacks: Sequence[ExpertStack], n_expert: int
    ) -> None:
        self._source_prefix, self._prefix = source_prefix, prefix
        self._stacks, self._n_expert = stacks, n_expert
        self.waiting = {name: stack for stack in stacks for name in self._names(stack)}
        self._got: dict[str, SourceTensor] = {}

    def add(self, name: str, source: SourceTensor) -> list[TargetTensor]:
        check_shape(source, self.waiting[name].shape)
        self._got[name] = source
        if len(self._got) < len(self.waiting):
            return []
        return [self._stack(stack) for stack in self._stacks]

    def _names(self, stack: ExpertStack) -> list[str]:
        return [self._source_prefix + stack.source.format(e) for e in range(self._n_expert)]

    def _stack(self, stack: ExpertStack) -> TargetTensor:
        sources = [self._got[name] for name in self._names(stack)]
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
    names: Iterable[str | None], key: str, kinds: Sequence[str], marked: str, tensor: str
) -> None:
    """Raises InputError when `config.json` calls a layer another kind than its tensors show.

    `key` lists the `kinds`, one per layer; only layers of the `marked` kind have that `tensor`.
    """
    present = set(names)
    for i, kind in enumerate(kinds):
        if (f"model.layers.{i}.{tensor}" in present) != (kind == marked):
            raise InputError(
                f"config.json: {key} calls layer {i} {printable(kind)!r}, but the checkpoint "
                f"{'lacks' if kind == marked else 'has'} its {tensor}",
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
