"""A Hugging Face `tokenizer.json` on the board: text to token ids and, token by token, back.

Bytes of single tokens come from the file's own decoder description, so that a character spread over
several tokens can be put together while it streams.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.vocabulary import EngineVocabulary, encode_text
from boardfit.edge.errors import (
    EngineMissingError,
    InputError,
    UnsafeInputError,
    UnsupportedModelError,
)
from boardfit.edge.process.foreign import foreign_errors, held_back_stderr
from boardfit.edge.requirements import install_line

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024  # the largest in use have 34 MB


class HfTokenizer(EngineVocabulary):
    """Ids, bytes and special tokens of one vocabulary. Calls may come from any thread."""

    def __init__(
        self,
        data: bytes,
        *,
        name: str,
        bos: int | str | None = None,
        add_bos: bool | None = None,
        eog: Iterable[int] = (),
        eos_text: str = "",
        template: str | None = None,
    ) -> None:
        """Read `tokenizer.json` from `data`; `name` stands for it in messages. `bos` is an id, or
        how the token is written; `add_bos` None: as the file's own post-processor does. Raises
        InputError or UnsafeInputError for one that is broken, EngineMissingError without the
        tokenizers package.
        """
        if len(data) > MAX_TOKENIZER_BYTES:
            raise UnsafeInputError(f"{name}: {len(data)} bytes; {MAX_TOKENIZER_BYTES} is the most")
        try:
            import tokenizers
        except ImportError as error:
            raise EngineMissingError(
                f"the tokenizer of {name} needs the package tokenizers",
                next_step=install_line("tflite", "tokenizers"),
            ) from error
        with held_back_stderr(), foreign_errors(f"{name}: not a tokenizer"):
            # One copy, and no look at the JSON in Python: 150,000 entries take 60 MB as it is.
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
            decoder = self._tokenizer.decoder
            decoder_steps = json.loads(decoder.__getstate__()) if decoder is not None else None
        self._lock = threading.Lock()  # whether special tokens are parsed is a switch on it
        self._name = name
        n_plain = int(self._tokenizer.get_vocab_size(with_added_tokens=False))
        self.n_tokens = max(n_plain, 1 + max(added, default=-1))
        self._special = {token for token, entry in added.items() if entry.special}
        self._added = frozenset(added)
        self._to_bytes = _byte_decoder(decoder_steps, name)
        self._pieces: dict[int, bytes] = {}
        self.bos: int | None = self._tokenizer.token_to_id(bos) if isinstance(bos, str) else bos
        text = self._tokenizer.id_to_token(self.bos) if self.bos is not None else ""
        self.bos_text: str = text or ""
        if add_bos is None:
            with foreign_errors(f"{name}: the tokenizer fails on a text"):
                add_bos = self._tokenizer.encode("a").ids[:1] == [self.bos]
        self.add_bos = add_bos and self.bos is not None
        self.eos_text = eos_text
        end = self._tokenizer.token_to_id(eos_text) if eos_text else None
        self.eog = frozenset(eog) | ({end} if end is not None else set())
        self.template = template

    @classmethod
    def of_model(cls, model: OpenedFile) -> HfTokenizer:
        """From `tokenizer.json` beside a model, and what else a checkpoint has beside it."""
        find, folder = model.open_beside, model.parent
        file = find("tokenizer.json")
        if file is None:
            raise InputError(
                f"{folder} has no tokenizer.json, without which the model knows no text",
                next_step="open the bundle that edge build made, or put the checkpoint's "
                "tokenizer.json beside the model",
            )
        config = _json_object(find("tokenizer_config.json"))
        generation = _json_object(find("generation_config.json"))
        listed = generation.get("eos_token_id")
        ends = listed if isinstance(listed, list) else [listed]
        bos = _token_text(config.get("bos_token")) or generation.get("bos_token_id")
        setting, template = config.get("add_bos_token"), config.get("chat_template")
        if (jinja := find("chat_template.jinja")) is not None:
            template = jinja.read(MAX_TOKENIZER_BYTES).decode("utf-8", "replace")
        return cls(
            file.read(MAX_TOKENIZER_BYTES),
            name=file.name,
            bos=bos if isinstance(bos, (int, str)) else None,
            add_bos=setting if isinstance(setting, bool) else None,
            eog=[token for token in ends if isinstance(token, int)],
            eos_text=_token_text(config.get("eos_token")),
            template=template if isinstance(template, str) else None,
        )

    # ---- text to ids ----------------------------------------------------------------------------

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        encode_text(text)  # tokenizers' own error is no InputError
        with self._lock, foreign_errors(f"{self._name}: the tokenizer fails on this text"):
            self._tokenizer.encode_special_tokens = not special
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def find_special(self, text: str) -> list[tuple[str, bool]]:
        encode_text(text)
        with self._lock:
            self._tokenizer.encode_special_tokens = False
            found = self._tokenizer.encode(text, add_special_tokens=False)
        # As it stands in the text: a token may be matched in another case or form.
        return sorted({
            (text[start:end].strip(), token in self._special)
            for token, (start, end) in zip(found.ids, found.offsets, strict=True)
            if token in self._added
        })  # fmt: skip

    # ---- ids to text ----------------------------------------------------------------------------

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; b"" for special tokens and for ids without one."""
        known = self._pieces.get(token)
        if known is None:
            text = None if token in self._special else self._tokenizer.id_to_token(token)
            known = self._pieces[token] = self._to_bytes(text) if text is not None else b""
        return known

    def written(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    @property
    def end_tokens(self) -> list[int]:
        return sorted(self.eog)

    def is_eog(self, token: int) -> bool:
        return token in self.eog


# ---- the decoder --------------------------------------------------------------------------------


def _byte_decoder(decoder: Any, name: str) -> Callable[[str], bytes]:
    """How one token's text becomes bytes, from the `decoder` entry of a tokenizer.json."""
    decoder = decoder if isinstance(decoder, dict) else {}
    is_sequence = decoder.get("type") == "Sequence"
    listed = decoder.get("decoders", ()) if is_sequence else [decoder] if decoder else ()
    steps = [step for step in listed if isinstance(step, dict)]
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        byte_of = {character: byte for byte, character in enumerate(_byte_characters())}

        def byte_level(text: str) -> bytes:
            # Added tokens are plain text, and may hold characters that stand for no byte.
            if all(c in byte_of for c in text):
                return bytes(byte_of[c] for c in text)
            return text.encode("utf-8")

        return byte_level
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        space = next((s["replacement"] for s in steps if s.get("type") == "Metaspace"), "▁")

        def sentence_piece(text: str) -> bytes:
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                return bytes([int(text[3:5], 16)])
            return text.replace(space, " ").encode("utf-8")

        return sentence_piece
    raise UnsupportedModelError(
        f"{name}: a decoder of {', '.join(map(str, kinds)) or 'no'} steps; known are ByteLevel, "
        "ByteFallback and Metaspace"
    )


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte (upstream: transformers, `bytes_to_unicode`)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in kept}
    for i, b in enumerate(b for b in range(256) if b not in names):
        names[b] = chr(256 + i)
    return [names[b] for b in range(256)]


# ---- files --------------------------------------------------------------------------------------


def _json_object(path: OpenedFile | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        document = json.loads(path.read(MAX_TOKENIZER_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object")
    return document


def _token_text(entry: Any) -> str:
    """How a special token is written in a tokenizer_config.json: a string, or an object of one."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else ""
