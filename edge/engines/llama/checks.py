"""Check a well-formed GGUF for claims that make the native loader abort the process.

The linter (`boardfit.edge.files.gguf`) knows the format; these rules are llama.cpp's own, found by
feeding it.
"""

import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from boardfit.device_profiles.cost.graph_table import can_hold_graph
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines.llama.estimate import read_per_layer
from boardfit.edge.errors import UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.gguf import GgufArray, GgufHeader
from boardfit.edge.files.kind import open_regular
from boardfit.edge.units import printable

# Limits of the library's own tables (llama-hparams.h), and the names that it knows.
MAX_LAYERS, MAX_EXPERTS = 512, 1024
_ROPE_SCALING = ("none", "linear", "yarn", "longrope")
# Kinds of vocabularies of encoders, and one of the library's own tests.
_NO_GENERATION, _OF_ENCODERS = ("bert", "t5", "test"), ("bert", "t5")
# Kinds that write unknown text byte by byte, and throw where the byte has no token.
_BYTE_TOKENS = ("llama", "plamo2")
#: The bytes that UTF-8 text can hold.
_UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))
_U64 = struct.Struct("<Q")
#: Raised when the rules change: what passed older ones is looked at again.
_RULES = 1
_MAX_MODELS = 64


def check_layers(path: Source, header: GgufHeader) -> None:
    """Raise UnsafeInputError for a number of layers that the library would abort for."""
    n_layer = header.integer(f"{header.arch}.block_count")
    if n_layer is not None and not 1 <= n_layer <= len(header.tensors):
        raise UnsafeInputError(
            f"{path}: claims {n_layer} layers and has {len(header.tensors)} tensors",
            next_step="download or convert the file again",
        )


def check_graph(path: Source, header: GgufHeader, kv_type: str) -> None:
    """Raise UnsupportedModelError for a graph that the library's table cannot hold: it aborts."""
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


def check_numbers(path: Source, header: GgufHeader) -> None:
    """Raise UnsafeInputError for numbers that no model has: the library asserts some of them
    (`llama-model.cpp`, `ops.cpp`), and computes nonsense with the others.
    """
    arch = header.arch
    for key, value in header.kv.items():
        if not key.startswith(f"{arch}."):
            continue
        numbers = [value] if isinstance(value, float) else _read_floats(path, value)
        is_positive = key.endswith("epsilon") or ".rope.freq_base" in key
        for number in numbers:
            if not math.isfinite(number) or (is_positive and number <= 0):
                expected = "a number above 0" if is_positive else "a finite number"
                raise _refuse(path, f"{key} is {number:g}, expected {expected}")
    scaling = header.text(f"{arch}.rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALING:
        raise UnsupportedModelError(
            f"{path}: {arch}.rope.scaling.type is {printable(scaling)!r}; the engine knows "
            f"{', '.join(_ROPE_SCALING)}",
            next_step="convert the original checkpoint again",
        )
    _check_counts(path, header)


def _check_counts(path: Source, header: GgufHeader) -> None:
    """Layers and experts, as `llama-model.cpp` asserts them."""

    def count(name: str) -> int:
        return header.integer(f"{header.arch}.{name}") or 0

    n_layer, n_next = count("block_count"), count("nextn_predict_layers")
    if n_layer > MAX_LAYERS or n_next > n_layer:
        raise _refuse(
            path, f"{n_layer} layers, {n_next} of them to predict further; {MAX_LAYERS} is the most"
        )
    n_experts = count("expert_count")
    used = read_per_layer(path, header, f"{header.arch}.expert_used_count", n_layer)
    n_used = max(used, default=0)
    if n_experts > MAX_EXPERTS or n_used > n_experts or (n_experts and not n_used):
        raise _refuse(
            path, f"{n_used} of {n_experts} experts are used; the engine holds {MAX_EXPERTS}"
        )
    groups, n_groups_used = count("expert_group_count"), count("expert_group_used_count")
    is_wrong = groups > 0 and groups >= n_experts
    if groups > 1:
        is_wrong = is_wrong or n_experts % groups != 0 or not 0 < n_groups_used < groups
    if is_wrong:
        raise _refuse(
            path, f"{n_experts} experts in {groups} groups, {n_groups_used} of them are used"
        )


class CheckedModels:
    """The hashes of models whose vocabulary was checked, kept. Losing them costs time alone."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_directory() / "checked-vocabularies.json"
        self._known: list[str] = []
        try:
            stored = json.loads(self._path.read_bytes())
            if stored["rules"] == _RULES:
                self._known = [entry for entry in stored["sha256"] if isinstance(entry, str)]
        except Exception:
            pass  # no file yet, or a damaged one: everything is checked again

    def __contains__(self, sha256: str | None) -> bool:
        return sha256 is not None and sha256 in self._known

    def add(self, sha256: str) -> None:
        """Remember a model among the newest; a read-only home is no error."""
        self._known = [*(entry for entry in self._known if entry != sha256), sha256][-_MAX_MODELS:]
        document = {"rules": _RULES, "sha256": self._known}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(document).encode(), mode=0o600)
        except OSError:
            pass


def check_vocabulary(path: Source, header: GgufHeader, *, embeds: bool = False) -> None:
    """Raise UnsafeInputError for a vocabulary on which the library ends the process. It reads
    tokens as C strings. A file whose hash is known is looked at once. With `embeds` it may be an
    encoder's.
    """
    seen = CheckedModels()
    if isinstance(path, OpenedFile) and path.sha256 in seen:
        return
    _check_tokens(path, header, embeds)
    if isinstance(path, OpenedFile) and path.sha256:
        seen.add(path.sha256)


def _check_tokens(path: Source, header: GgufHeader, embeds: bool) -> None:
    model = header.text("tokenizer.ggml.model")
    if model in _NO_GENERATION and not (embeds and model in _OF_ENCODERS):
        raise UnsupportedModelError(
            f"{path}: a vocabulary of the kind {model!r}, which models have that generate no text"
        )
    tokens = header.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, GgufArray) or tokens.item_type != "str":
        return
    texts = _read_strings(path, tokens)
    known = set(texts)
    if b"" in known or any(b"\0" in text for text in texts):
        texts = [text.partition(b"\0")[0] or b"[EMPTY_%d]" % i for i, text in enumerate(texts)]
        known = set(texts)
    if len(known) != len(texts):
        twice = next(text for text, n in Counter(texts).items() if n > 1)
        shown = printable(twice.decode("utf-8", "replace"))
        raise _refuse(path, f"the token {shown!r} is in its vocabulary twice")
    if model in _BYTE_TOKENS:
        missing = [
            b for b in _UTF8_BYTES if b"<0x%02X>" % b not in known and bytes([b]) not in known
        ]
        if missing:
            raise _refuse(path, f"its vocabulary has no token for the byte {missing[0]:#04x}")


def _refuse(path: Source, reason: str) -> UnsafeInputError:
    return UnsafeInputError(f"{path}: {reason}", next_step="download or convert the file again")


def _read_strings(path: Source, array: GgufArray) -> list[bytes]:
    """The items of an array whose lengths were checked with the header; 260,000 take 0.1 s."""
    data, at, unpack = _read_array(path, array), 0, _U64.unpack_from
    found = []
    for _ in range(len(array)):
        end = at + 8 + unpack(data, at)[0]
        found.append(data[at + 8 : end])
        at = end
    return found


def _read_floats(path: Source, value: Any) -> tuple[float, ...]:
    if not isinstance(value, GgufArray) or value.item_type not in ("f32", "f64"):
        return ()
    code = "f" if value.item_type == "f32" else "d"
    return struct.unpack(f"<{len(value)}{code}", _read_array(path, value))


def _read_array(path: Source, array: GgufArray) -> bytes:
    file, _ = open_regular(path)
    with file:
        file.seek(array.offset)
        return file.read(array.nbytes)
