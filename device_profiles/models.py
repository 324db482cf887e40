"""Public architecture facts of language models, found by the names that people write.

`find_model("Qwen2.5-0.5B-Instruct")`, `find_model("llama3.2:3b")`; the facts are in `models.toml`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from boardfit.device_profiles.shape import LayerShape, ModelShape

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the 3.10 backport has the same interface
    import tomli as tomllib

_FILE = Path(__file__).parent / "models.toml"


@dataclass(frozen=True)
class Matrix:
    """`count` equal matrices (one per layer) of `n_rows` rows, all experts' rows together.

    `role` is q, k, v, o, up, gate, down, mix (the state part of a hybrid), head or table.
    """

    role: str
    name: str
    n_per_row: int
    n_rows: int
    count: int
    n_experts: int = 1

    @property
    def n_values(self) -> int:
        return self.n_per_row * self.n_rows * self.count


@dataclass(frozen=True)
class KnownModel:
    """One entry of the catalogue; the fields are those of `models.toml`, which explains them."""

    name: str
    layers: int
    embd: int
    heads: int
    kv: int
    head: int
    ff: int
    vocab: int
    repo: str
    tied: bool = False
    plain_ff: bool = False
    experts: int = 0
    used: int = 0
    ff_expert: int = 0
    window: int | None = None
    global_every: int = 1
    attn_layers: int | None = None
    state_rows: int | None = None
    per_layer: int = 0
    wide_layers: int = 0
    shared_kv: int = 0
    aliases: tuple[str, ...] = ()
    exact: bool = True  # False for a stand-in made from a parameter count

    @property
    def n_attention(self) -> int:
        return self.layers if self.attn_layers is None else self.attn_layers

    @property
    def table_values(self) -> int:
        """Values of the token embedding."""
        return self.vocab * self.embd

    def matrices(self) -> Iterator[Matrix]:
        """Every matrix; norms and biases are less than a thousandth and left out."""
        attention, own_kv = self.n_attention, self.n_attention - self.shared_kv
        wide = self.heads * self.head
        yield Matrix("q", "blk.attn_q.weight", self.embd, wide, attention)
        yield Matrix("k", "blk.attn_k.weight", self.embd, self.kv * self.head, own_kv)
        yield Matrix("v", "blk.attn_v.weight", self.embd, self.kv * self.head, own_kv)
        yield Matrix("o", "blk.attn_output.weight", wide, self.embd, attention)
        if attention < self.layers:
            rows = 4 * self.embd if self.state_rows is None else self.state_rows
            yield Matrix("mix", "blk.ssm_in.weight", self.embd, rows, self.layers - attention)
        width, stacked = self.ff, max(self.experts, 1)
        if self.experts:
            width = self.ff_expert * self.experts
            yield Matrix("gate", "blk.ffn_gate_inp.weight", self.embd, self.experts, self.layers)
        normal = self.layers - self.wide_layers
        for count, factor in ((normal, 1), (self.wide_layers, 2)):
            if not count:
                continue
            n = width * factor
            yield Matrix("up", "blk.ffn_up.weight", self.embd, n, count, stacked)
            if not self.plain_ff:
                yield Matrix("gate", "blk.ffn_gate.weight", self.embd, n, count, stacked)
            down_rows, down_width = self.embd * stacked, n // stacked
            yield Matrix("down", "blk.ffn_down.weight", down_width, down_rows, count, stacked)
        if self.per_layer:
            # Source: src/models/gemma3n.cpp: a gate and a projection per layer, one wide model
            # projection, and a table of which a token reads one row.
            extra = self.per_layer
            yield Matrix("gate", "blk.inp_gate.weight", self.embd, extra, self.layers)
            yield Matrix("up", "blk.proj.weight", extra, self.embd, self.layers)
            yield Matrix("up", "per_layer_model_proj.weight", self.embd, extra * self.layers, 1)
            rows = self.vocab
            yield Matrix("table", "per_layer_token_embd.weight", extra * self.layers, rows, 1)
        role = "head" if self.tied else "table"
        yield Matrix(role, "token_embd.weight", self.embd, self.vocab, 1)
        if not self.tied:
            yield Matrix("head", "output.weight", self.embd, self.vocab, 1)

    def shape(self) -> ModelShape:
        """The shape that costs are computed from; states of hybrids count as nothing."""
        layers = []
        for i in range(self.layers):
            before, after = (n * self.n_attention // self.layers for n in (i, i + 1))
            full = self.window is None or (i + 1) % self.global_every == 0
            kv = self.kv if after > before else 0
            layers.append(LayerShape(kv, self.head, self.head, None if full else self.window))
        values = [(m.n_values, m.n_experts) for m in self.matrices()]
        share = self.used / self.experts if self.experts else 1.0
        active = sum(n * (share if stacked > 1 else 1) for n, stacked in values)
        return ModelShape(
            arch=self.name,
            n_layer=self.layers,
            n_embd=self.embd,
            n_head=self.heads,
            n_ff=self.ff,
            n_vocab=self.vocab,
            n_ctx_train=131072,
            layers=tuple(layers),
            n_params=sum(n for n, _ in values),
            n_params_active=int(active),
            n_expert=self.experts,
            n_expert_used=self.used,
            tied_embeddings=self.tied,
        )


@lru_cache(maxsize=1)
def known_models() -> dict[str, KnownModel]:
    """The catalogue by canonical name. Raises ValueError for a broken file."""
    data: Mapping[str, Mapping[str, Any]] = tomllib.loads(_FILE.read_text("utf-8"))["models"]
    models = {}
    for name, entry in data.items():
        fields = {**entry, "aliases": tuple(entry.get("aliases", ()))}
        models[name] = KnownModel(name=name, **fields)
    return models


@lru_cache(maxsize=1)
def _by_key() -> dict[str, KnownModel]:
    index: dict[str, KnownModel] = {}
    for model in known_models().values():
        for name in (model.name, *model.aliases):
            key = _key(name)
            if index.setdefault(key, model) is not model:
                raise ValueError(f"models.toml: {name!r} is used twice")
    return index


# Words about how a model was trained further or packed, not what it is made of.
_DECORATION = re.compile(
    r"\b(?:instruct|chat|it|base|moe|sparse|gguf|hf|preview|text|latest|qat|quantized|litert|lm|mlx"
    r"|onnx|awq|gptq|int4|int8|fp16|bf16|f16|4bit|8bit|2507|thinking|meta|model|imatrix|ud"
    r"|i?q\d(?:_[a-z0-9]+)*|w\d+a\d+)\b"
)


def _key(name: str) -> str:
    text = re.sub(r"\([^)]*\)|\[[^]]*\]", " ", name.lower())
    text = text.rpartition("/")[2].removesuffix(".gguf")
    # What joins the parts of a quantization's name is kept until the decoration is removed.
    text = _DECORATION.sub(" ", re.sub(r"[^a-z0-9._]+", " ", text))
    text = _DECORATION.sub(" ", text.replace("_", " "))
    return re.sub(r"[^a-z0-9.]", "", text).strip(".")


def find_model(name: str) -> KnownModel | None:
    """The model meant by a name as written in tables, file names and registries, else None."""
    key = _key(name)
    return _by_key().get(key) if key else None


def similar_model(params_b: float) -> KnownModel:
    """Make a stand-in for an unknown dense model of `params_b` billion parameters.

    Layers, width and heads of the Llama family are scaled between its sizes. The embedding has
    100,000 tokens.
    """
    like = min(
        (
            known_models()[n]
            for n in (
                "smollm-135m",
                "qwen3-0.6b",
                "llama-3.2-1b",
                "llama-3.2-3b",
                "llama-3.1-8b",
                "qwen2.5-14b",
                "llama-3.1-70b",
            )
        ),
        key=lambda m: abs(m.shape().n_params / 1e9 / params_b - 1),
    )
    body = like.shape().n_params - like.table_values * (1 if like.tied else 2)
    tables = like.shape().n_params - body
    wanted = max(params_b * 1e9 - tables, 0.2 * params_b * 1e9)
    layers = max(1, round(like.layers * wanted / body))
    return replace(like, name=f"{params_b:g}b", layers=layers, aliases=(), exact=False)
