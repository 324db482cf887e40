"""Rebuild a checkpoint's tokenizer files from upstream's vocab-only GGUF files.

    rebuild(vocab_path(llama_cpp, "qwen2"), out_dir, flavour="qwen2")

writes tokenizer.json (or tokenizer.model, or both) and tokenizer_config.json with the real
vocabulary, the true splitting rules and the special tokens of the family, so that tests run on what
users have, without a download. The files pass the `.inp`/`.out` vectors beside the GGUF files.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.converters.tokenizers.flavours import FLAVOURS, Flavour

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED_FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
_ADDED_TYPES = (UNKNOWN, CONTROL, USER_DEFINED)


@dataclass(frozen=True)
class Rebuilt:
    """What a test needs to write a matching config.json: embedding rows and special ids."""

    n_vocab: int
    bos_id: int | None
    eos_id: int
    pad_id: int | None


@dataclass
class _Vocab:
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    n_vocab: int

    def id_of(self, text: str | None) -> int | None:
        return None if text is None else self.tokens.index(text)


def vocab_path(llama_cpp: Path, flavour: str) -> Path:
    """The vocab-only GGUF that a flavour is made from, in a llama.cpp tree."""
    return llama_cpp / "models" / f"ggml-vocab-{FLAVOURS[flavour].vocab}.gguf"


def rebuild(vocab_gguf: Path, out_dir: Path, flavour: str) -> Rebuilt:
    """Write the tokenizer files of `flavour` into `out_dir` with the tokens of `vocab_gguf`."""
    form = FLAVOURS[flavour]
    if form.vocab == "gemma-4":
        from tests.converters.tokenizers.gemma_fast import rebuild_gemma4

        return rebuild_gemma4(vocab_gguf, out_dir)
    vocab = _read(vocab_gguf, form)
    out_dir.mkdir(parents=True, exist_ok=True)
    added = _added_tokens(vocab, form)
    if vocab.scores is None:
        _write_json(out_dir / "tokenizer.json", _byte_level_json(vocab, form, added))
    else:
        if "tokenizer.model" in form.files:
            (out_dir / "tokenizer.model").write_bytes(_sentence_piece_model(vocab, form))
        if "tokenizer.json" in form.files:
            _write_json(out_dir / "tokenizer.json", _byte_fallback_json(vocab, form, added))
    _write_json(out_dir / "tokenizer_config.json", _tokenizer_config(form, added, vocab))
    eos = vocab.id_of(form.eos)
    assert eos is not None
    return Rebuilt(vocab.n_vocab, vocab.id_of(form.bos), eos, vocab.id_of(form.pad))


def read_vectors(vocab_gguf: Path) -> list[tuple[str, list[int]]]:
    """Upstream's (text, ids) pairs beside a vocab-only GGUF; ids without special tokens added."""
    texts = Path(f"{vocab_gguf}.inp").read_bytes().decode("utf-8")
    ids = Path(f"{vocab_gguf}.out").read_text(encoding="utf-8")
    parts = texts.split("\n__ggml_vocab_test__\n")[:-1]
    lines = ids.split("\n")[: len(parts)]
    return [(t, [int(i) for i in line.split()]) for t, line in zip(parts, lines, strict=True)]


def read_fields(path: Path, prefix: str = "tokenizer.") -> dict[str, Any]:
    """Metadata of a trusted GGUF file whose keys start with `prefix`, without `tokenizer.ggml.`.

    The gguf package takes 20 s for 400,000 strings; this takes a second.
    """
    data, fields = path.read_bytes(), {}
    (n_entries,), at = struct.unpack_from("<Q", data, 16), 24
    for _ in range(n_entries):
        key, at = _read_value(data, at, _STRING)
        (kind,) = struct.unpack_from("<I", data, at)
        value, at = _read_value(data, at + 4, kind)
        if key.startswith(prefix):
            fields[key.removeprefix("tokenizer.ggml.")] = value
    return fields


_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS[12] = "d"


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        (n,) = struct.unpack_from("<Q", data, at)
        return data[at + 8 : at + 8 + n].decode("utf-8"), at + 8 + n
    if kind != _ARRAY:
        code = "<" + _NUMBERS[kind]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    item, n = struct.unpack_from("<IQ", data, at)
    at += 12
    if item != _STRING:
        code = f"<{n}{_NUMBERS[item]}"
        return list(struct.unpack_from(code, data, at)), at + struct.calcsize(code)
    values = []
    for _ in range(n):
        text, at = _read_value(data, at, _STRING)
        values.append(text)
    return values, at


def _read(path: Path, form: Flavour) -> _Vocab:
    fields = read_fields(path)
    tokens, types = fields["tokens"], fields["token_type"]
    n_vocab = len(tokens)
    scores = fields["scores"] if fields["model"] == "llama" else None
    while tokens[-1].startswith("[PAD"):  # ids that no token claims
        tokens.pop()
        types.pop()
    if scores is not None:
        scores = scores[: len(tokens)]
    tokens = [form.rename.get(text, text) for text in tokens]
    tokens += form.extra
    types += [CONTROL] * len(form.extra)
    if form.vocab == "phi-3":
        types[:3], scores[:3] = [UNKNOWN, CONTROL, CONTROL], [0.0, 0.0, 0.0]
    if form.pieces:
        # Gemma's order: its own special pieces first, then bytes and the rest.
        tokens = [*form.pieces, *tokens[3:]]
        own = {form.unk: UNKNOWN, "<start_of_turn>": USER_DEFINED, "<end_of_turn>": USER_DEFINED}
        kinds = [own.get(piece, CONTROL) for piece in form.pieces]
        types = [*kinds, *types[3:]]
        scores = [*([0.0] * len(form.pieces)), *scores[3:]]
    return _Vocab(tokens, types, scores, fields.get("merges"), max(n_vocab, len(tokens)))


def _added_tokens(vocab: _Vocab, form: Flavour) -> list[dict[str, Any]]:
    special = (form.bos, form.eos, form.pad, form.unk)
    added = []
    for token_id, (text, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)):
        if kind not in _ADDED_TYPES:
            continue
        rstrip = form.rstrip and token_id > 1 and text != "<|endoftext|>"
        # Phi-3 marks </s> as not special; deepseek's stray letters are no special tokens either.
        is_special = kind != USER_DEFINED or text in special
        if form.rstrip and text == "</s>":
            is_special = False
        added.append(
            {
                "id": token_id,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": rstrip,
                "normalized": kind == USER_DEFINED and not form.rstrip,
                "special": is_special,
            }
        )
    return added


def _post_processor(vocab: _Vocab, form: Flavour) -> dict[str, Any] | None:
    if not form.adds_bos:
        return None if vocab.scores is not None else _byte_level_processor()
    bos = {"id": form.bos, "ids": [vocab.id_of(form.bos)], "tokens": [form.bos]}
    piece = {"SpecialToken": {"id": form.bos, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [piece, text[0]],
        "pair": [piece, text[0], {"SpecialToken": {"id": form.bos, "type_id": 1}}, text[1]],
        "special_tokens": {form.bos: bos},
    }


def _byte_level_processor() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }


def _byte_level_json(vocab: _Vocab, form: Flavour, added: list[dict[str, Any]]) -> dict[str, Any]:
    # As in the originals: an added token past the base vocabulary is not in model.vocab.
    n_base = max(i for i, kind in enumerate(vocab.types) if kind == NORMAL) + 1
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": form.normalizer,
        "pre_tokenizer": form.pre_tokenizer,
        "post_processor": _post_processor(vocab, form),
        "decoder": {**_byte_level_processor(), "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": form.ignore_merges,
            "vocab": {text: i for i, text in enumerate(vocab.tokens[:n_base])},
            "merges": vocab.merges,
        },
    }


def _byte_fallback_json(
    vocab: _Vocab, form: Flavour, added: list[dict[str, Any]]
) -> dict[str, Any]:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    n_base = len(vocab.tokens) if form.vocab != "phi-3" else 32000
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [prepend, space]}
        if form.dummy_prefix
        else space,
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocab, form),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([strip] if form.dummy_prefix else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": form.unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(vocab.tokens[:n_base])},
            "merges": _merges_of(vocab, n_base),
        },
    }


def _merges_of(vocab: _Vocab, n_base: int) -> list[list[str]]:
    """Merges that a fast tokenizer derives from scored pieces: every split of a piece into two
    pieces, better score first.
    """
    assert vocab.scores is not None
    ids = {t: i for i, t in enumerate(vocab.tokens[:n_base]) if vocab.types[i] == NORMAL}
    merges = []
    for text, token_id in ids.items():
        splits = [(text[:k], text[k:]) for k in range(1, len(text))]
        pairs = [(ids[a], ids[b], a, b) for a, b in splits if a in ids and b in ids]
        merges += [(vocab.scores[token_id], a, b) for _, _, a, b in sorted(pairs)]
    merges.sort(key=lambda merge: -merge[0])
    return [[a, b] for _, a, b in merges]


def _tokenizer_config(form: Flavour, added: list[dict[str, Any]], vocab: _Vocab) -> dict[str, Any]:
    keep = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(t["id"]): {k: t[k] for k in keep} for t in added},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "tokenizer_class": form.tokenizer_class,
    }
    for role in ("bos", "eos", "pad", "unk"):
        config[f"{role}_token"] = getattr(form, role)
    if vocab.scores is not None:
        config["add_bos_token"], config["add_eos_token"] = form.adds_bos, False
    if form.template is not None:
        config["chat_template"] = form.template
    return {**config, **form.settings}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# --------------------------------------------------------------------------- tokenizer.model
# sentencepiece_model.proto, the few fields that are needed, written by hand: the protobuf runtime
# is no dependency.


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _sentence_piece_model(vocab: _Vocab, form: Flavour) -> bytes:
    assert vocab.scores is not None
    n_pieces = len(vocab.tokens) if form.vocab != "phi-3" else 32000
    pieces = [
        _bytes(1, _bytes(1, text.encode("utf-8")) + _float(2, score) + _number(3, kind))
        for text, score, kind in zip(vocab.tokens, vocab.scores, vocab.types, strict=True)
    ][:n_pieces]
    names = {"unk": form.unk, "bos": form.bos, "eos": form.eos, "pad": form.pad}
    if form.vocab == "phi-3":
        names.update(eos="</s>", pad=None)
    trainer = _number(3, 2) + _number(4, n_pieces) + _number(35, 1)
    for n, (_, text) in enumerate(names.items()):
        token_id = vocab.id_of(text)
        is_control = token_id is not None and vocab.types[token_id] in (UNKNOWN, CONTROL)
        if token_id is not None and is_control and (n < 3 or token_id != vocab.id_of(names["eos"])):
            trainer += _number(40 + n, token_id) + _bytes(45 + n, (text or "").encode("utf-8"))
        else:
            trainer += _number(40 + n, -1)
    normalizer = (
        _bytes(1, b"identity") + _number(3, int(form.dummy_prefix)) + _number(4, 0) + _number(5, 1)
    )
    return b"".join(pieces) + _bytes(2, trainer) + _bytes(3, normalizer)
