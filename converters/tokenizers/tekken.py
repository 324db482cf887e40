"""Read Mistral's tekken.json as the tokenizer.json that stands for it. It lists tokens as bytes by
rank, and a text is merged by these ranks, as tiktoken does. Special tokens come first in the ids.
The rules are those of `mistral_common` (tokens/tokenizers/tekken.py) and of upstream's
gguf-py/gguf/vocab.py, `MistralVocab`.
"""

import base64
import binascii
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boardfit.converters.documents import read_json_object
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError
from boardfit.edge.units import printable

FILE = "tekken.json"
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_MOST_TOKENS = 1_000_000
_AGAIN = "download tekken.json again, or use a checkpoint with tokenizer.json"
# GPT-2's printable characters for bytes.
_PLAIN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_ODD = [byte for byte in range(256) if byte not in _PLAIN]
_CHARACTERS = {**{b: chr(b) for b in _PLAIN}, **{b: chr(256 + i) for i, b in enumerate(_ODD)}}

_TEMPLATE_NAMES = {"v3": "v3", **dict.fromkeys(("v7", "v11", "v13"), "v7")}


def read_tekken(directory: Path) -> Mapping[str, Any]:
    """The content of tekken.json. Raises InputError where it is not that."""
    path = directory / FILE
    tekken = read_json_object(path)
    config = tekken.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("pattern"), str):
        raise _wrong("config.pattern is missing")
    return tekken


def as_tokenizer_json(tekken: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that gives the same ids. Raises InputError for a damaged file."""
    config = tekken["config"]
    n_special = _count(config, "default_num_special_tokens")
    n_inner = _count(config, "default_vocab_size") - n_special
    special = _special_tokens(tekken, n_special)
    inner = _inner_tokens(tekken, n_inner)
    ranks = {token: rank for rank, token in enumerate(inner)}
    if len(ranks) != len(inner) or any(len(token) != 1 for token in inner[:256]):
        raise _wrong("vocab has a token twice, or does not begin with the 256 bytes")
    vocab = {text: token_id for token_id, (text, _) in enumerate(special)}
    for token, rank in ranks.items():
        if vocab.setdefault(_text(token), n_special + rank) < n_special:
            raise _wrong(f"vocab repeats the special token {printable(_text(token))!r}")
    flags = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    added = [
        {"id": token_id, "content": text, "special": is_control, **flags}
        for token_id, (text, is_control) in enumerate(special)
    ]
    bos = {"id": _ROLES["bos_token"], "ids": [vocab.get("<s>", 0)], "tokens": ["<s>"]}
    made: dict[str, Any] = {"normalizer": None, "added_tokens": added, **_read_table()["tokenizer"]}
    made["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": config["pattern"]}
    made["post_processor"]["special_tokens"] = {"<s>": bos}
    merges = [[_text(left), _text(right)] for left, right in _merges(inner, ranks)]
    made["model"] |= {"vocab": vocab, "merges": merges}
    return made


def _read_table() -> dict[str, Any]:
    return copy.deepcopy(load_toml("boardfit.converters.tokenizers", "tekken.toml"))


def as_tokenizer_config(tekken: Mapping[str, Any], *, with_template: bool) -> dict[str, Any]:
    """The entries of tokenizer_config.json that tekken.json stands for."""
    made: dict[str, Any] = {**_ROLES, "add_bos_token": True, "add_eos_token": False}
    name = _TEMPLATE_NAMES.get(str(tekken["config"].get("version")))
    if with_template and name:
        made["chat_template"] = _read_table()["templates"][name]
    return made


def _special_tokens(tekken: Mapping[str, Any], count: int) -> list[tuple[str, bool]]:
    """Text of each special token, and whether it is a control token; unused ids are filled."""
    listed = tekken.get("special_tokens")
    if listed is None:
        first = _read_table()["first_special"]
        listed = [{"rank": i, "token_str": text} for i, text in enumerate(first)]
    found: dict[int, tuple[str, bool]] = {}
    for given in listed if isinstance(listed, list) else [listed]:
        entry: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        rank, text = entry.get("rank"), entry.get("token_str")
        if type(rank) is not int or not 0 <= rank < count or not isinstance(text, str) or not text:
            raise _wrong(
                f"special_tokens holds {printable(repr(given), 60)}; expected token_str and a "
                f"rank below {count}"
            )
        found[rank] = (text, bool(entry.get("is_control", True)))
    tokens = [found.get(rank, (f"<SPECIAL_{rank}>", True)) for rank in range(count)]
    if len({text for text, _ in tokens}) != count:
        raise _wrong("special_tokens has a text twice")
    return tokens


def _inner_tokens(tekken: Mapping[str, Any], count: int) -> list[bytes]:
    """The bytes of each token that is not special, by rank."""
    vocab = tekken.get("vocab")
    if not isinstance(vocab, list) or not 256 <= count <= len(vocab):
        held = len(vocab) if isinstance(vocab, list) else 0
        raise _wrong(f"vocab holds {held} tokens, but config asks for {count}")
    tokens = []
    for rank, entry in enumerate(vocab[:count]):
        try:
            if entry["rank"] != rank:
                raise ValueError
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except (TypeError, KeyError, ValueError, binascii.Error):
            token = b""
        if not token:
            raise _wrong(
                f"vocab holds {printable(repr(entry), 60)}; expected rank {rank} and token_bytes"
            )
        tokens.append(token)
    return tokens


def _merges(inner: Sequence[bytes], ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that makes another, in the order of the ranks that they make."""
    merges = []
    for token in inner[256:]:
        parts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [pair for pair in parts if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _text(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= _MOST_TOKENS:
        raise _wrong(f"config.{key} is {printable(repr(value), 40)}; expected 1 to {_MOST_TOKENS}")
    return value


def _wrong(fault: str) -> InputError:
    return InputError(f"{FILE}: {fault}", next_step=_AGAIN)
