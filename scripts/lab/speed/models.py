"""Find a catalogued model by the names that people write, or a stand-in of its size.

`find_model("Qwen2.5-0.5B-Instruct")`, `find_model("llama3.2:3b")`
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from boardfit.device_profiles.models import KnownModel, known_models


@lru_cache(maxsize=1)
def _by_key() -> dict[str, KnownModel]:
    index: dict[str, KnownModel] = {}
    for model in known_models().values():
        for name in (model.name, *model.aliases):
            key = _key(name)
            if index.setdefault(key, model) is not model:
                raise ValueError(f"models.toml: {name!r} is used twice")
    return index


# Words that say how a model was trained on or packed, not what it is made of.
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
    """A stand-in for an unknown dense model of `params_b` billion parameters: layers, width and
    heads of the Llama family scaled between its sizes, an embedding of 100,000 tokens.
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
    body = like.shape().n_params - like.vocab * like.embd * (1 if like.tied else 2)
    tables = like.shape().n_params - body
    wanted = max(params_b * 1e9 - tables, 0.2 * params_b * 1e9)
    layers = max(1, round(like.layers * wanted / body))
    return replace(like, name=f"{params_b:g}b", layers=layers, aliases=(), exact=False)
