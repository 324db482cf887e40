"""What a GGUF file is for, where it is no language model that generates text: its header names
it, where an engine would fail with its own log, or only after the load.
"""

import json
import pkgutil

from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.files.gguf.header import GgufHeader
from boardfit.edge.files.kind import FileKind
from boardfit.edge.units import printable

_OWN_FILE = "give the language model's own GGUF file"
_TABLE = json.loads(pkgutil.get_data(__package__, "purpose.json") or "")
# `general.type`, as gguf's GGUFType and llama.cpp's tools write it.
_TYPES = {name: FileKind(*words) for name, words in _TABLE["types"].items()}
_IMAGE_MODELS = frozenset(_TABLE["image_models"])
#: Architectures that turn a text into a vector; they keep no KV cache.
ENCODERS = frozenset(_TABLE["encoders"])
_EMBEDDING = FileKind(
    "an embedding model, which generates no text",
    "edge run MODEL --embed TEXT makes vectors with it; give a model that generates text for this",
)
#: `<arch>.pooling_type` (enum llama_pooling_type): how the vectors of tokens become one.
POOLING = ("none", "mean", "cls", "last", "rank")
_POOLING_NONE, _POOLING_RANK = 0, 4
# Tensors of a vision or audio part, as llama.cpp's mmproj files and Ollama's whole files name them.
OTHER_MODALITIES = ("v.", "mm.", "a.")


def find_purpose(header: GgufHeader) -> FileKind | None:
    kind = header.text("general.type") or "model"
    if kind in _TYPES:
        return _TYPES[kind]
    if kind != "model":
        return FileKind(f"a GGUF file of kind {printable(kind, 40)}", _OWN_FILE)
    arch = header.text("general.architecture")
    if arch is None and any(key.startswith("imatrix.") for key in header.kv):
        return _TYPES["imatrix"]
    if arch == "clip":
        return _TYPES["mmproj"]
    if arch in _IMAGE_MODELS:
        return FileKind(
            f"an image or video model ({arch})", "run it in ComfyUI or stable-diffusion.cpp"
        )
    if header.tensors and all(t.name.endswith((".lora_a", ".lora_b")) for t in header.tensors):
        return _TYPES["adapter"]
    pooling = header.get(f"{arch}.pooling_type", _POOLING_NONE)
    if pooling == _POOLING_RANK:
        return FileKind("a reranker, which generates no text", "give a model that generates text")
    if arch == "t5encoder":
        return FileKind(f"an encoder ({arch}) alone", "give a model that generates text")
    if arch in ENCODERS or pooling != _POOLING_NONE:
        return _EMBEDDING
    return _EMBEDDING if header.get(f"{arch}.attention.causal") is False else None


def is_embedder(header: GgufHeader) -> bool:
    return find_purpose(header) is _EMBEDDING


def require_embedder(header: GgufHeader, path: object) -> str:
    """The pooling of an embedding model. Raises UnsupportedModelError where there is none."""
    pooling = header.integer(f"{header.arch}.pooling_type") or _POOLING_NONE
    if is_embedder(header) and _POOLING_NONE < pooling < _POOLING_RANK:
        return POOLING[pooling]
    reason = "states no pooling" if is_embedder(header) else "is no embedding model"
    raise UnsupportedModelError(
        f"{printable(str(path))} {reason}, so a text does not become one vector",
        next_step="give an embedding model (EmbeddingGemma, Qwen3-Embedding, bge, e5, nomic) that "
        "was converted with its modules.json",
    )


def require_model(header: GgufHeader, path: object) -> None:
    """Raises as `require_language_model` does, but takes an embedding model too."""
    if not is_embedder(header):
        require_language_model(header, path)


def require_language_model(header: GgufHeader, path: object) -> None:
    """Raises UnsupportedModelError, which names what the file is, for anything else."""
    purpose = find_purpose(header)
    if purpose is not None:
        raise UnsupportedModelError(
            f"{printable(str(path))}: {purpose.name}, not a language model",
            next_step=purpose.next_step,
        )
    if not header.text("general.architecture"):
        raise InputError(
            f"{printable(str(path))}: the GGUF file names no architecture (key "
            "general.architecture), so it is not a language model",
            next_step=_OWN_FILE,
        )


def require_text_only(header: GgufHeader, path: object) -> None:
    """Raises UnsupportedModelError for a vision or audio part inside, as Ollama stores it."""
    inside = next((t.name for t in header.tensors if t.name.startswith(OTHER_MODALITIES)), None)
    if inside is not None:
        raise UnsupportedModelError(
            f"{printable(str(path))}: the vision or audio part is inside the file (tensor "
            f"{printable(inside, 60)}), as Ollama stores it; llama.cpp does not load that",
            next_step="edge build makes a text model of it",
        )
