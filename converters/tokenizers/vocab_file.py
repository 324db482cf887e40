"""Write a GGUF file that holds a vocabulary and nothing else, so that it can be verified in seconds
before hours of quantizing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gguf import GGUFValueType

from boardfit.converters.gguf_packing import pack_header, pack_metadata
from boardfit.converters.spec import KeyValue
from boardfit.converters.tokenizers.vocabulary import LoadedTokenizer
from boardfit.edge.disk.atomic import write_atomic


def write_vocab_only(
    tokenizer: LoadedTokenizer, arch: str, path: Path, *, name: str = "vocab"
) -> None:
    """Write `path` with the tokenizer's metadata and no tensors.

    `name` becomes `general.name`: the engine trims whitespace after special tokens for models
    whose name contains "phi-3", so a vocabulary is verified under the name it will be shipped with.
    """
    identity = [
        KeyValue("general.architecture", arch, GGUFValueType.STRING),
        KeyValue("general.name", name, GGUFValueType.STRING),
    ]
    write_vocab_entries([*identity, *tokenizer.metadata()], path)


def write_vocab_entries(metadata: Iterable[KeyValue], path: Path) -> None:
    """Write the entries of a `ModelSpec.metadata` that make up its vocabulary: architecture, name
    and `tokenizer.*`. The file is written beside, synced and renamed.
    """
    entries = [entry for entry in metadata if _is_vocab_key(entry.key)]
    write_atomic(path, pack_header(len(entries), pack_metadata(entries), 0, b""))


def _is_vocab_key(key: str) -> bool:
    return key.startswith("tokenizer.") or key in ("general.architecture", "general.name")
