"""`DecoderFamily`: what nearly all decoder-only families share; a family overrides what differs.

Most of a family is data. `tensors.toml` has the tensors of a layer by part, `defaults.toml` what
transformers assumes for absent keys and what the engine has built in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from boardfit.converters.families.assembly import assemble, check_kinds
from boardfit.converters.families.layout import (
    Checkpoint,
    ExpertStack,
    TensorRule,
    language_model_only,
    make_rule,
)
from boardfit.converters.families.rope import global_rope, rope_metadata, rope_parameters
from boardfit.converters.families.settings import Config, metadata_entries, quote
from boardfit.converters.families.shape import MOST_LAYERS, find_shape
from boardfit.converters.spec import KeyValue, TargetTensor
from boardfit.device_profiles.shape import ModelShape
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UnsupportedModelError

# Far above every published model; more is a damaged file, and would cost time before it is noticed.
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
    """A decoder-only transformer with Hugging Face's usual tensor names, and one checkpoint of it.

    It never reads tensor data itself. It names which rows of which source tensors make up a target
    tensor.

    Class data: `arch` (GGUF architecture), `parts` (of a layer, in tensors.toml), `flagged` (parts
    that a flag of `config.json` adds), `outer_parts` (outside the layers), `kinds_key` and `mark`
    (the key that lists the kinds of layers; the kind of recurrent ones, and a tensor that only they
    have), `is_multimodal` (whether the checkpoint has more than a language model), `can_keep_mtp`
    (whether its MTP head can be in the file).
    """

    arch: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()
    flagged: ClassVar[Mapping[str, str]] = {}
    outer_parts: tuple[str, ...] = ("outer",)
    kinds_key: ClassVar[str] = "layer_types"
    mark: ClassVar[tuple[str, str] | None] = None
    is_multimodal: ClassVar[bool] = False
    can_keep_mtp: ClassVar[bool] = False

    def __init__(self, checkpoint: Checkpoint, *, keep_mtp: bool = False) -> None:
        """Raises InputError and its kinds for a configuration that cannot be converted."""
        self.checkpoint, self.keep_mtp = checkpoint, keep_mtp
        self._made: list[TargetTensor] | None = None
        self.config = read_config(type(self), Config(checkpoint.config))
        self.adjust()
        self.dims = self.dimensions()

    @classmethod
    def choose(cls, config: Config) -> type[DecoderFamily]:
        """The family of a configuration; one `model_type` may stand for several architectures."""
        return cls

    # -- hooks -----------------------------------------------------------------------------------

    def adjust(self) -> None:
        """Bring the configuration into the form that the other hooks read, and check it."""

    def head_dim(self) -> int:
        """Size of a head: `head_dim`, else hidden size over heads."""
        return self.config.whole_or("head_dim", None) or self.even_head_dim()

    def has_head_dim(self) -> bool:
        """Whether `attention.key_length` is written: upstream does so when transformers'
        configuration object has a `head_dim`, given or filled in.
        """
        return self.config.get("head_dim") is not None

    @property
    def is_tied(self) -> bool:
        """Whether the output head may be absent because it is the embedding."""
        return self.config.flag("tie_word_embeddings")

    @property
    def kinds(self) -> Sequence[str]:
        """The kind of each layer, of a family that has several."""
        raise NotImplementedError

    @property
    def sliding(self) -> Sequence[bool]:
        """For each layer whether it looks back over a window only; empty where none does."""
        return ()

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes that tensors.toml names and neither `Dimensions` nor the configuration has."""
        return {}

    def per_layer(self) -> dict[str, Any]:
        """Entries that are written as lists over the layers, in the place of the usual ones."""
        return {}

    def layer_parts(self, layer: int) -> Sequence[str]:
        """What a layer consists of."""
        return (*self.parts, *(part for key, part in self.flagged.items() if self.config.flag(key)))

    def layer_rules(self, layer: int) -> Mapping[str, TensorRule]:
        """Rules of one layer by the name after `model.layers.N.`."""
        return self.rules(*self.layer_parts(layer))

    def outer_rules(self) -> dict[str, TensorRule]:
        """Rules of tensors outside the layers by full name."""
        rules = self.rules(*self.outer_parts)
        if self.is_tied and "lm_head.weight" in rules:
            rules["lm_head.weight"] = replace(rules["lm_head.weight"], optional=True)
        return rules

    def outer_stacks(self) -> Sequence[tuple[ExpertStack, int]]:
        """Stacks outside the layers, by full source name, with their number of tensors."""
        return ()

    def extra_tensors(self) -> list[TargetTensor]:
        """Tensors made from the configuration; they are written first."""
        if str(global_rope(rope_parameters(self.config)).get("rope_type")).lower() == "llama3":
            raise UnsupportedModelError(
                f"config.json: rope_type llama3 is not run by the engine for {self.arch}"
            )
        return []

    def extra_metadata(self) -> dict[str, Any]:
        """Entries after the common ones, by the name after `<arch>.`."""
        return {}

    def rename(self, name: str) -> str | None:
        """The name that rules use for a source tensor; None drops it."""
        return language_model_only(name) if self.is_multimodal else name

    def unused_window(self) -> int | None:
        """The sliding window of a model that the engine runs with full attention, else None."""
        return None

    # -- what families are made of -----------------------------------------------------------------

    def rules(
        self, *parts: str, dims: Dimensions | None = None, optional: bool = False
    ) -> dict[str, TensorRule]:
        """The rules of these parts in tensors.toml, for other `dims` where a layer has its own."""
        find = functools.partial(self._find_size, dims or self.dims)
        rows = chain.from_iterable(_TENSORS[part].items() for part in parts)
        found = {name: make_rule(row, find) for name, row in rows if "{}" not in name}
        return {name: replace(r, optional=r.optional or optional) for name, r in found.items()}

    def stacks(self, *parts: str) -> list[ExpertStack]:
        """The stacks of these parts: rows with `{}` for a number, in upstream's order."""
        find = functools.partial(self._find_size, self.dims)
        rows = chain.from_iterable(_TENSORS[part].items() for part in parts)
        rules = {name: make_rule(row, find) for name, row in rows if "{}" in name}
        return [ExpertStack(name, rule.target, rule.shape) for name, rule in rules.items()]

    def _find_size(self, dims: Dimensions, word: str) -> int:
        """A product of sizes by name: of `dims` or the family, else keys of `config.json`."""
        known = {**vars(dims), "q_rows": dims.q_rows, "kv_rows": dims.kv_rows,
                 "n_expert": self.n_expert, **self.sizes}  # fmt: skip
        factors = [int(f) if f.isdigit() else known.get(f) for f in word.split("*")]
        names = zip(word.split("*"), factors, strict=True)
        return math.prod(self.config.whole(name) if size is None else size for name, size in names)

    def even_head_dim(self) -> int:
        return self.config.whole("hidden_size") // self.config.whole("num_attention_heads")

    def n_layers(self) -> int:
        return self.config.whole("num_hidden_layers", most=MOST_LAYERS)

    @property
    def n_expert(self) -> int:
        """Experts per layer; 0 for a dense model."""
        for key in ("num_local_experts", "num_experts"):
            if self.config.get(key) is not None:
                return self.config.whole(key, least=0, most=MOST_EXPERTS)
        return 0

    @property
    def n_expert_used(self) -> int:
        """Experts that one token uses; 0 for a dense model."""
        key = "num_experts_per_tok"
        return 0 if self.config.get(key) is None else self.config.whole(key, least=0)

    # -- what callers ask -------------------------------------------------------------------------

    def dimensions(self) -> Dimensions:
        """Raises InputError for a missing or impossible size."""
        config = self.config
        n_head = config.whole("num_attention_heads")
        dims = Dimensions(
            n_layer=self.n_layers(),
            n_embd=config.whole("hidden_size"),
            n_ff=config.whole("intermediate_size"),
            n_head=n_head,
            n_head_kv=config.whole_or("num_key_value_heads", n_head),
            head_dim=self.head_dim(),
            n_vocab=config.whole("vocab_size"),
            n_ctx=config.whole("max_position_embeddings"),
        )
        if dims.n_head % dims.n_head_kv:
            raise InputError(
                f"config.json: {dims.n_head} query heads cannot share {dims.n_head_kv} "
                "key-value heads evenly"
            )
        return dims

    def metadata(self) -> list[KeyValue]:
        """`<arch>.*` entries in upstream's order; `general.*` and `tokenizer.*` are added around
        them by `boardfit.converters.source.hf`.
        """
        values = {**self.values(), **self.extra_metadata()}
        return metadata_entries(self.arch, values | self.per_layer())

    def values(self) -> dict[str, Any]:
        """The common entries, in the order of upstream's conversion/base.py,
        `TextModel.set_gguf_parameters`.
        """
        dims, config = self.dims, self.config
        values: dict[str, Any] = {
            "block_count": dims.n_layer,
            "context_length": dims.n_ctx,
            "embedding_length": dims.n_embd,
            "feed_forward_length": dims.n_ff,
            "attention.head_count": dims.n_head,
            "attention.head_count_kv": dims.n_head_kv,
            **rope_metadata(rope_parameters(config)),
            **self.norm_values(),
        }
        if any(config.get(key) is not None for key in ("num_local_experts", "num_experts")):
            values["expert_count"] = self.n_expert
        if config.get("num_experts_per_tok") is not None:
            values["expert_used_count"] = self.n_expert_used
        return values | (self.head_values() if self.has_head_dim() else {})

    def tensors(self) -> list[TargetTensor]:
        """All target tensors in upstream's order; see `assembly.assemble` for what is refused."""
        if self._made is None:
            self._made = self.make_tensors()
        return self._made

    def make_tensors(self) -> list[TargetTensor]:
        if self.mark is not None:
            names = map(self.rename, self.checkpoint.names())
            check_kinds(names, self.kinds_key, self.kinds, *self.mark)
        made = assemble(
            self.checkpoint,
            family=self.arch,
            n_layer=self.dims.n_layer,
            outer=self.outer_rules(),
            layer=self.layer_rules,
            experts=lambda layer: self.stacks(*self.layer_parts(layer)),
            n_expert=self.n_expert,
            first=self.extra_tensors(),
            stacks=self.outer_stacks(),
            rename=self.rename,
        )
        if self.is_tied and has_equal_head(made):
            return [tensor for tensor in made if tensor.name != "output.weight"]
        return made

    def shape(self) -> ModelShape:
        """The model's shape, by the law for every GGUF file of this architecture."""
        entries = {entry.key: entry.value for entry in self.metadata()}
        return find_shape(self.arch, entries, self.tensors())

    def notes(self) -> list[str]:
        """Notes about a head that is stored twice, and about sliding windows that the engine does
        not have for this architecture.
        """
        notes = []
        if self.is_tied and "lm_head.weight" in map(self.rename, self.checkpoint.names()):
            is_kept = any(tensor.name == "output.weight" for tensor in self.tensors())
            notes.append(
                "config.json ties the output head to the embedding, but the stored head differs; "
                "it is kept"
                if is_kept
                else "the stored output head is left out: config.json ties it to the embedding"
            )
        window = self.unused_window()
        if window is not None and window < self.config.whole("max_position_embeddings"):
            notes.append(
                f"trained with a sliding window of {window} tokens; the engine attends to the "
                f"whole context, so answers can differ from the original's beyond {window} tokens"
            )
        return notes

    def head_values(self) -> dict[str, int]:
        return dict.fromkeys(("attention.key_length", "attention.value_length"), self.dims.head_dim)

    def norm_values(self) -> dict[str, float]:
        """The entries for the epsilons of norms, as far as the configuration has them."""
        names = {"rms_norm_eps": "layer_norm_rms_epsilon", "layer_norm_eps": "layer_norm_epsilon"}
        given = {name: self.config.number_or(key, None) for key, name in names.items()}
        return {f"attention.{name}": value for name, value in given.items() if value is not None}

    def window_values(self, sliding: Sequence[bool] | None = None) -> dict[str, Any]:
        """The entries for a window, with the pattern of layers where it is given."""
        values: dict[str, Any] = {"attention.sliding_window": self.config.whole("sliding_window")}
        if sliding is not None:
            values["attention.sliding_window_pattern"] = list(sliding)
        return values


def read_config(family: type, outer: Config) -> Config:
    """The configuration with the defaults of a family. They count more than the outer, multimodal
    one. Raises UnsupportedModelError for a value other than the engine computes with.
    """
    defaults, inner = read_defaults(family), outer.inner("text_config")
    found = Config({**outer, **defaults, **inner} if inner else {**defaults, **outer})
    for kind in family.__mro__:
        for key, value in _DEFAULTS.get(kind.__name__, {}).get("computed", {}).items():
            given = found.get(key)
            is_fit = defaults.get(key) is None if given is None else given == value
            if not is_fit:
                raise UnsupportedModelError(
                    f"config.json: {key} is {quote(given)}; the engine computes as if it were "
                    f"{value!r}"
                )
    return found


def read_defaults(family: type) -> dict[str, Any]:
    """What transformers assumes for absent keys: of the class, else of the nearest one above it."""
    name = next(
        k.__name__ for k in family.__mro__ if {*_DEFAULTS.get(k.__name__, ())} - {"computed"}
    )
    found: dict[str, Any] = {}
    while name is not None:
        found = {**_DEFAULTS[name], **found}
        name = _DEFAULTS[name].get("like")
    return {key: value for key, value in found.items() if key not in ("like", "computed")}


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
