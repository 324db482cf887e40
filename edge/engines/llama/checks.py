"""Check a well-formed GGUF for claims that make the native loader abort the process.

The linter (`boardfit.edge.files.gguf`) knows the format; these rules are llama.cpp's own, found by
feeding it.
"""

from __future__ import annotations

from collections import Counter

from boardfit.device_profiles.cost.graph_table import can_hold_graph
from boardfit.edge.disk.opened_file import Source
from boardfit.edge.errors import UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.gguf import GgufHeader, read_header
from boardfit.edge.units import printable


def check_layers(path: Source, header: GgufHeader) -> None:
    """Every layer has tensors. Raises UnsafeInputError where the header claims otherwise: the
    library believes it, and aborts the process for none or allocates for two thousand million.
    """
    n_layer = header.integer(f"{header.arch}.block_count")
    if n_layer is not None and not 1 <= n_layer <= len(header.tensors):
        raise UnsafeInputError(
            f"{path}: claims {n_layer} layers and has {len(header.tensors)} tensors",
            next_step="download or convert the file again",
        )


def check_graph(path: Source, header: GgufHeader, kv_type: str) -> None:
    """The engine's table of graph nodes holds this model's graph. Raises UnsupportedModelError
    otherwise: the library aborts the process when the table is full.
    """
    arch = header.arch
    names = [tensor.name for tensor in header.tensors]
    used = header.integer(f"{arch}.expert_used_count") or 0
    heads = header.integer(f"{arch}.attention.head_count")
    width = header.integer(f"{arch}.embedding_length") or 0
    head_dim = header.integer(f"{arch}.attention.key_length") or width // max(heads or 1, 1)
    if can_hold_graph(arch, names, used, kv_type, head_dim):
        return
    plain = kv_type != "f16" and can_hold_graph(arch, names, used, "f16", head_dim)
    raise UnsupportedModelError(
        f"{printable(str(path))}: with a {kv_type} KV cache its graph has more nodes than the"
        " engine's table holds, and the engine would abort",
        next_step="use --kv-type f16" if plain else "a newer llama.cpp may hold it",
    )


def check_tokens_unique(path: Source) -> None:
    """No token text appears twice. Raises UnsafeInputError otherwise: the library asserts it
    (`llama-vocab.cpp`, `id_to_token.size() == token_to_id.size()`), which ends the process.
    """
    tokens = read_header(path, arrays="full").get("tokenizer.ggml.tokens")
    if not isinstance(tokens, (list, tuple)) or len(set(tokens)) == len(tokens):
        return
    twice = next(text for text, n in Counter(tokens).items() if n > 1)
    raise UnsafeInputError(
        f"{path}: the token {printable(str(twice))!r} is in its vocabulary twice",
        next_step="download or convert the file again",
    )
