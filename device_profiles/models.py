"""Public architecture facts of language models. The facts are in `models.toml`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from boardfit.device_profiles.shape import LayerShape, ModelShape
from boardfit.device_profiles.toml_parser import load_toml


@dataclass(frozen=True)
class Matrix:
    """`count` equal matrices (one per layer) of `n_rows` rows, all experts' rows together. `role`
    is q, k, v, o, up, gate, down, mix (the state part of a hybrid), head or table.
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
    state: int = 0
    global_head: int | None = None
    arch: str = ""
    aliases: tuple[str, ...] = ()
    exact: bool = True  # False for a stand-in made from a parameter count

    @property
    def n_attention(self) -> int:
        return self.layers if self.attn_layers is None else self.attn_layers

    def matrices(self) -> Iterator[Matrix]:
        """Every matrix; norms and biases are less than a thousandth and left out."""
        attention = self.n_attention
        for head, count, own_kv in self._heads():
            wide = self.heads * head
            yield Matrix("q", "blk.attn_q.weight", self.embd, wide, count)
            yield Matrix("k", "blk.attn_k.weight", self.embd, self.kv * head, own_kv)
            yield Matrix("v", "blk.attn_v.weight", self.embd, self.kv * head, own_kv)
            yield Matrix("o", "blk.attn_output.weight", wide, self.embd, count)
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

    def _heads(self) -> Iterator[tuple[int, int, int]]:
        """(head size, layers that attend, layers with a cache of their own) for each head size."""
        own = self.n_attention - self.shared_kv
        if self.global_head is None:
            yield self.head, self.n_attention, own
            return
        n_full, own_full = (n // self.global_every for n in (self.n_attention, own))
        yield self.head, self.n_attention - n_full, own - own_full
        yield self.global_head, n_full, own_full

    def shape(self) -> ModelShape:
        layers = []
        for i in range(self.layers):
            before, after = (n * self.n_attention // self.layers for n in (i, i + 1))
            full = self.window is None or (i + 1) % self.global_every == 0
            kv = self.kv if after > before else 0
            head = self.global_head if full and self.global_head else self.head
            layers.append(
                LayerShape(
                    kv,
                    head,
                    head,
                    None if full else self.window,
                    state_values=0 if kv else self.state,
                    shares_kv=i >= self.layers - self.shared_kv,
                )
            )
        values = [(m.n_values, m.n_experts) for m in self.matrices()]
        share = self.used / self.experts if self.experts else 1.0
        active = sum(n * (share if stacked > 1 else 1) for n, stacked in values)
        return ModelShape(
            arch=self.arch or self.name,
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


def _data() -> dict[str, Any]:
    return load_toml(__package__, "models.toml")


@lru_cache(maxsize=1)
def known_models() -> dict[str, KnownModel]:
    """The catalogue by canonical name. Raises ValueError for a broken file."""
    return {
        name: KnownModel(name=name, **{**entry, "aliases": tuple(entry.get("aliases", ()))})
        for name, entry in _data()["models"].items()
    }


_QUANT = re.compile(r"(?:i?q\d(?:_\w+)?|tq\d_\w+|mxfp4|w\d+a\d+|\d{4})")


def find_model(name: str) -> KnownModel | None:
    """The catalogue's model of any usual name: `qwen3-0.6b`, `Qwen/Qwen3-0.6B-GGUF`, `qwen3:0.6b`,
    `llama3.2:1b-instruct-q4_K_M`. None for an unknown one.
    """
    plain = re.sub(r"[:_\s]", "-", name.strip().lower().rpartition("/")[2])
    for candidate in (plain, _reduced(plain), plain.removeprefix("meta-")):
        if (found := _by_key().get(_key(candidate))) is not None:
            return found
        if (latest := _data()["names"]["latest"].get(_key(candidate))) is not None:
            return known_models()[latest]
    return None


def _reduced(name: str) -> str:
    """The name without what changes no shape. Quants keep their underscores as hyphens here."""
    joined = re.sub(r"-((?:i?q|tq)\d)-(?=[a-z0-9]{1,2}(?:-|$))", r"-\1_", name)
    joined = re.sub(r"(_[a-z0-9])-([smlx]{1,2})(?=-|$)", r"\1_\2", joined)
    plain = _data()["names"]["no_shape"]
    words = [w for w in joined.split("-") if w not in plain and not _QUANT.fullmatch(w)]
    return "-".join(words)


def _key(name: str) -> str:
    """`Llama-3.2-1B` and `llama3.2:1b` are spelled alike without hyphens."""
    return re.sub(r"[-_:]", "", name.lower())


@lru_cache(maxsize=1)
def _by_key() -> dict[str, KnownModel]:
    """The catalogue by every name: canonical ones first, then aliases, then repositories."""
    found: dict[str, KnownModel] = {}
    models = known_models().values()
    for names in (
        lambda m: (m.name,),
        lambda m: m.aliases,
        lambda m: (m.repo.rpartition("/")[2], _reduced(m.repo.rpartition("/")[2].lower())),
    ):
        for model in models:
            for name in names(model):
                found.setdefault(_key(name), model)
    return found
