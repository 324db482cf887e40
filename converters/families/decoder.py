"""`DecoderFamily`: what nearly all decoder-only families share; a family overrides what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.assembly import assemble, check_kinds
from boardfit.converters.families.layout import (
    Checkpoint,
    ExpertStack,
    TensorRule,
    copy,
    language_model_only,
)
from boardfit.converters.families.rope import global_rope, rope_metadata, rope_parameters
from boardfit.converters.families.settings import Config
from boardfit.converters.spec import KeyValue, TargetTensor
from boardfit.device_profiles.shape import LayerShape, ModelShape
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UnsupportedModelError

# Far above every published model; more is a damaged file, and would cost time before it is noticed.
MOST_LAYERS = 4096
MOST_EXPERTS = 4096
_ROWS_COMPARED = 256
_DEFAULTS = load_toml("boardfit.converters.families", "defaults.toml")
_TENSORS = load_toml("boardfit.converters.families", "tensors.toml")


@dataclass(frozen=True)
class Dimensions:
    """The sizes that a decoder's tensors are built of, checked."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx: int

    @property
    def q_rows(self) -> int:
        return self.n_head * self.head_dim

    @property
    def kv_rows(self) -> int:
        return self.n_head_kv * self.head_dim


class DecoderFamily:
    """A decoder-only transformer with Hugging Face's usual tensor names.

    It never reads tensor data itself. It names which rows of which source tensors make up a target
    tensor.

    Class data: `arch` (GGUF architecture), `parts` (of a layer, in tensors.toml), `kinds_key` and
    `mark` (the key that lists the kinds of layers; the kind of recurrent ones, and a tensor that
    only they have), `is_multimodal` (whether the checkpoint has more than a language model),
    `name_with_head` (what messages call a family whose head is never the embedding), `can_keep_mtp`
    (whether its MTP head can be in the file), `keep_mtp` (whether it shall be).
    """

    arch: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()
    kinds_key: ClassVar[str] = "layer_types"
    mark: ClassVar[tuple[str, str] | None] = None
    is_multimodal: ClassVar[bool] = False
    name_with_head: ClassVar[str] = ""
    can_keep_mtp = keep_mtp = False

    def __init__(self) -> None:
        self.defaults = read_defaults(type(self))

    @classmethod
    def from_config(cls, config: Config) -> DecoderFamily:
        """The family of a configuration; one `model_type` may stand for several architectures."""
        return cls()

    # -- hooks -----------------------------------------------------------------------------------

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The configuration that all other hooks see.

        Defaults of a text configuration count more than the outer, multimodal one.
        """
        inner = settings.optional_mapping(checkpoint.config, "text_config")
        if inner is None:
            return {**self.defaults, **checkpoint.config}
        return {**checkpoint.config, **self.defaults, **inner}

    def head_dim(self, config: Config) -> int:
        """Size of a head: `head_dim`, else hidden size over heads."""
        given = settings.optional_int(config, "head_dim")
        if given is not None:
            return given
        n_embd = settings.require_int(config, "hidden_size")
        n_head = settings.require_int(config, "num_attention_heads")
        return n_embd // n_head

    def has_head_dim(self, config: Config) -> bool:
        """Whether `attention.key_length` is written: upstream does so when transformers'
        configuration object has a `head_dim`, given or filled in.
        """
        return config.get("head_dim") is not None

    def is_tied(self, config: Config) -> bool:
        """Whether the output head may be absent because it is the embedding."""
        is_tied = settings.optional_bool(config, "tie_word_embeddings", False)
        if is_tied and self.name_with_head:
            raise UnsupportedModelError(
                f"config.json: tie_word_embeddings is true; the engine's {self.name_with_head} "
                "needs a head of its own"
            )
        return is_tied

    def kinds(self, config: Config) -> Sequence[str]:
        """The kind of each layer, of a family that has several."""
        raise NotImplementedError

    def state_values(self, config: Config, dims: Dimensions, layer: int) -> int | None:
        """Float32 values that a layer keeps instead of a KV cache; None where it attends."""
        return None

    def sliding(self, config: Config) -> Sequence[bool]:
        """For each layer whether it looks back over a window only; empty where none does."""
        return ()

    def per_layer(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        """Entries that are written as lists over the layers, in the place of the usual ones."""
        return {}

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        """Rules of one layer by the name after `model.layers.N.`."""
        return copies(dims, *self.parts)

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        """Rules of tensors outside the layers by full name."""
        return {
            "model.embed_tokens.weight": copy("token_embd.weight", dims.n_vocab, dims.n_embd),
            "model.norm.weight": copy("output_norm.weight", dims.n_embd),
            "lm_head.weight": copy(
                "output.weight", dims.n_vocab, dims.n_embd, optional=self.is_tied(config)
            ),
        }

    def expert_stacks(self, config: Config, dims: Dimensions, layer: int) -> Sequence[ExpertStack]:
        """Experts of one layer stored as one tensor each, in the order in which upstream writes the
        stacks.
        """
        return ()

    def outer_stacks(self, config: Config, dims: Dimensions) -> Sequence[tuple[ExpertStack, int]]:
        """Stacks outside the layers, by full source name, with their number of tensors."""
        return ()

    def extra_tensors(self, config: Config, dims: Dimensions) -> list[TargetTensor]:
        """Tensors made from the configuration; they are written first."""
        if str(global_rope(rope_parameters(config)).get("rope_type")).lower() == "llama3":
            raise UnsupportedModelError(
                f"config.json: rope_type llama3 is not run by the engine for {self.arch}"
            )
        return []

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        """Entries after the common ones, by the name after `<arch>.`."""
        return {}

    def rename(self, name: str) -> str | None:
        """The name that rules use for a source tensor; None drops it."""
        return language_model_only(name) if self.is_multimodal else name

    def rename_in(self, config: Config, name: str) -> str | None:
        """As `rename`, where the name depends on the configuration too."""
        return self.rename(name)

    # -- what callers ask -------------------------------------------------------------------------

    def dimensions(self, config: Config) -> Dimensions:
        """Raises InputError for a missing or impossible size."""
        n_head = settings.require_int(config, "num_attention_heads")
        dims = Dimensions(
            n_layer=settings.require_int(config, "num_hidden_layers", most=MOST_LAYERS),
            n_embd=settings.require_int(config, "hidden_size"),
            n_ff=settings.require_int(config, "intermediate_size"),
            n_head=n_head,
            n_head_kv=settings.optional_int(config, "num_key_value_heads") or n_head,
            head_dim=self.head_dim(config),
            n_vocab=settings.require_int(config, "vocab_size"),
            n_ctx=settings.require_int(config, "max_position_embeddings"),
        )
        if dims.n_head % dims.n_head_kv:
            raise InputError(
                f"config.json: {dims.n_head} query heads cannot share {dims.n_head_kv} "
                "key-value heads evenly"
            )
        return dims

    def metadata(self, checkpoint: Checkpoint) -> list[KeyValue]:
        """`<arch>.*` entries in upstream's order; `general.*` and `tokenizer.*` are added around
        them by `boardfit.converters.source.hf`.
        """
        config = self.config(checkpoint)
        dims = self.dimensions(config)
        values = {**self.values(config, dims), **self.extra_metadata(config, dims)}
        return settings.entries(self.arch, values | self.per_layer(config, dims))

    def values(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        """The common entries, in the order of upstream's conversion/base.py,
        `TextModel.set_gguf_parameters`.
        """
        values: dict[str, Any] = {
            "block_count": dims.n_layer,
            "context_length": dims.n_ctx,
            "embedding_length": dims.n_embd,
            "feed_forward_length": dims.n_ff,
            "attention.head_count": dims.n_head,
            "attention.head_count_kv": dims.n_head_kv,
            **rope_metadata(rope_parameters(config)),
            **norm_values(config),
            **self._expert_values(config),
        }
        if self.has_head_dim(config):
            values |= head_values(dims)
        return values

    def tensors(self, checkpoint: Checkpoint) -> list[TargetTensor]:
        """All target tensors in upstream's order; see `assembly.assemble` for what is refused."""
        config = self.config(checkpoint)
        if self.mark is not None:
            names = map(self.rename, checkpoint.names())
            check_kinds(names, self.kinds_key, self.kinds(config), *self.mark)
        dims = self.dimensions(config)
        made = assemble(
            checkpoint,
            family=self.arch,
            n_layer=dims.n_layer,
            outer=self.outer_rules(config, dims),
            layer=lambda index: self.layer_rules(config, dims, index),
            experts=lambda index: self.expert_stacks(config, dims, index),
            n_expert=self.n_expert(config),
            first=self.extra_tensors(config, dims),
            stacks=self.outer_stacks(config, dims),
            rename=lambda name: self.rename_in(config, name),
        )
        if self.is_tied(config) and has_equal_head(made):
            return [tensor for tensor in made if tensor.name != "output.weight"]
        return made

    def shape(self, checkpoint: Checkpoint) -> ModelShape:
        """The model's shape, parameters counted from the tensors themselves."""
        config = self.config(checkpoint)
        dims = self.dimensions(config)
        tensors = self.tensors(checkpoint)
        tied = all(tensor.name != "output.weight" for tensor in tensors)
        n_expert, n_used = self.n_expert(config), self.n_expert_used(config)
        return ModelShape(
            arch=self.arch,
            n_layer=dims.n_layer,
            n_embd=dims.n_embd,
            n_head=dims.n_head,
            n_ff=dims.n_ff,
            n_vocab=dims.n_vocab,
            n_ctx_train=dims.n_ctx,
            layers=tuple(self.layer_shape(config, dims, i) for i in range(dims.n_layer)),
            n_params=sum(tensor.n_elements for tensor in tensors),
            n_params_active=active_parameters(tensors, n_expert, n_used, dims.n_embd),
            n_expert=n_expert,
            n_expert_used=n_used,
            tied_embeddings=tied,
        )

    def notes(self, checkpoint: Checkpoint) -> list[str]:
        """Notes about a head that is stored twice, and about sliding windows that the engine does
        not have for this architecture.
        """
        notes = []
        config = self.config(checkpoint)
        if self.is_tied(config) and self._stores_head(checkpoint):
            is_kept = any(t.name == "output.weight" for t in self.tensors(checkpoint))
            notes.append(
                "config.json ties the output head to the embedding, but the stored head differs; "
                "it is kept"
                if is_kept
                else "the stored output head is left out: config.json ties it to the embedding"
            )
        window = self.unused_window(config)
        if window is not None and window < settings.require_int(config, "max_position_embeddings"):
            notes.append(
                f"trained with a sliding window of {window} tokens; the engine attends to the "
                f"whole context, so answers can differ from the original's beyond {window} tokens"
            )
        return notes

    def _stores_head(self, checkpoint: Checkpoint) -> bool:
        return any(self.rename(name) == "lm_head.weight" for name in checkpoint.names())

    def unused_window(self, config: Config) -> int | None:
        """The sliding window of a model that the engine runs with full attention, else None."""
        return None

    def layer_shape(self, config: Config, dims: Dimensions, layer: int) -> LayerShape:
        state = self.state_values(config, dims, layer)
        if state is not None:
            return LayerShape(0, dims.head_dim, dims.head_dim, state_values=state)
        is_sliding = any(self.sliding(config)[layer : layer + 1])
        window = settings.require_int(config, "sliding_window") if is_sliding else None
        return LayerShape(dims.n_head_kv, dims.head_dim, dims.head_dim, window=window)

    def n_expert(self, config: Config) -> int:
        """Experts per layer; 0 for a dense model."""
        for key in ("num_local_experts", "num_experts"):
            if config.get(key) is not None:
                return settings.require_int(config, key, least=0, most=MOST_EXPERTS)
        return 0

    def n_expert_used(self, config: Config) -> int:
        """Experts that one token uses; 0 for a dense model."""
        if config.get("num_experts_per_tok") is None:
            return 0
        return settings.require_int(config, "num_experts_per_tok", least=0)

    def _expert_values(self, config: Config) -> dict[str, Any]:
        values = {}
        if any(config.get(key) is not None for key in ("num_local_experts", "num_experts")):
            values["expert_count"] = self.n_expert(config)
        if config.get("num_experts_per_tok") is not None:
            values["expert_used_count"] = self.n_expert_used(config)
        return values


def copies(
    dims: Dimensions, *parts: str, optional: bool = False, **sizes: int
) -> dict[str, TensorRule]:
    """The rules of these parts in tensors.toml. `sizes` are those that `dims` does not have."""
    known = {**vars(dims), "q_rows": dims.q_rows, "kv_rows": dims.kv_rows, **sizes}
    rules = {}
    for name, row in chain.from_iterable(_TENSORS[part].items() for part in parts):
        target, *shape = row.split()
        extents = [
            math.prod(int(f) if f.isdigit() else known[f] for f in size.split("*"))
            for size in shape
        ]
        rules[name] = copy(target, *extents, optional=optional)
    return rules


def head_values(dims: Dimensions) -> dict[str, int]:
    return {"attention.key_length": dims.head_dim, "attention.value_length": dims.head_dim}


def norm_values(config: Config) -> dict[str, float]:
    """The entries for the epsilons of norms, as far as the configuration has them."""
    names = {"rms_norm_eps": "layer_norm_rms_epsilon", "layer_norm_eps": "layer_norm_epsilon"}
    given = {name: settings.optional_float(config, key) for key, name in names.items()}
    return {f"attention.{name}": value for name, value in given.items() if value is not None}


def window_values(config: Config, sliding: Sequence[bool] | None = None) -> dict[str, Any]:
    """The entries for a window, with the pattern of layers where it is given."""
    values: dict[str, Any] = {
        "attention.sliding_window": settings.require_int(config, "sliding_window")
    }
    if sliding is not None:
        values["attention.sliding_window_pattern"] = list(sliding)
    return values


def read_defaults(family: type) -> dict[str, Any]:
    """What transformers assumes for absent keys: of the class, else of the nearest one above it."""
    name = next(kind.__name__ for kind in family.__mro__ if kind.__name__ in _DEFAULTS)
    found: dict[str, Any] = {}
    while name is not None:
        found = {**_DEFAULTS[name], **found}
        name = _DEFAULTS[name].get("like")
    return {key: value for key, value in found.items() if key != "like"}


def has_equal_head(tensors: Sequence[TargetTensor]) -> bool:
    """Whether the output head repeats the embedding, value by value."""
    found = {tensor.name: tensor for tensor in tensors}
    head, embedding = found.get("output.weight"), found.get("token_embd.weight")
    if head is None or embedding is None:
        return False
    if (head.shape, head.source_type) != (embedding.shape, embedding.source_type):
        return False
    return all(
        _bytes_of_rows(head, start) == _bytes_of_rows(embedding, start)
        for start in range(0, head.n_rows, _ROWS_COMPARED)
    )


def _bytes_of_rows(tensor: TargetTensor, start: int) -> bytes:
    stop = min(start + _ROWS_COMPARED, tensor.n_rows)
    return np.ascontiguousarray(tensor.read(start, stop)).tobytes()


def active_parameters(
    tensors: Sequence[TargetTensor], n_expert: int, n_used: int, n_embd: int
) -> int:
    """Parameters that one token reads: the used share of stacked experts, and one row of the
    embedding unless it is the output head too, and of per-layer embeddings.
    """
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    total = 0
    for tensor in tensors:
        if "_exps." in tensor.name and n_expert:
            total += tensor.n_elements // n_expert * n_used
        elif tensor.name == "token_embd.weight" and not tied:
            total += n_embd
        elif tensor.name == "per_layer_token_embd.weight":
            total += tensor.n_per_row
        else:
            total += tensor.n_elements
    return total
