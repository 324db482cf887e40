"""The tokenizer files of a checkpoint directory, read once and bounded, nothing unpickled."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from boardfit.converters.documents import has_file, read_json_object, read_text
from boardfit.converters.tokenizers import tekken
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.units import printable

_MAX_TEMPLATE_BYTES = 4 * 1024**2
_MAX_TEMPLATES = 64
_TEMPLATE_FORMS = ("jinja", "json")
# The longest in use is a run of 256 blanks. Every text of a check is searched for added tokens.
MAX_TOKEN_CHARACTERS = 1024
_MAX_ADDED_CHARACTERS = 4 * 1024**2
# Token roles that GGUF and transformers both know, in the order in which upstream writes them
# (gguf-py/gguf/vocab.py, SpecialVocab).
SPECIAL_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class AddedToken:
    """One entry of `added_tokens`: text that is cut out before the model's own splitting."""

    id: int
    content: str
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `{}` when there is none. Raises as `read_json_object`."""
    return read_json_object(path) if has_file(path) else {}


def token_text(entry: Any) -> str | None:
    """The text of a `bos_token`-like entry, which is a string or an AddedToken object."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


@dataclass(frozen=True)
class TokenizerFiles:
    """A checkpoint directory as tokenizers see it: parsed JSON, an empty mapping where a file is
    absent. `config` is the parsed `config.json`.
    """

    directory: Path
    config: Mapping[str, Any]

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """tokenizer.json, or what stands for it where tekken.json is the only tokenizer."""
        if self._tekken is not None:
            return tekken.as_tokenizer_json(self._tekken)
        return read_json(self.directory / "tokenizer.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        given = read_json(self.directory / "tokenizer_config.json")
        if self._tekken is None:
            return given
        is_bare = not any(has_file(self.directory / f"chat_template.{e}") for e in _TEMPLATE_FORMS)
        return {**tekken.as_tokenizer_config(self._tekken, with_template=is_bare), **given}

    @cached_property
    def _tekken(self) -> Mapping[str, Any] | None:
        """tekken.json where no other tokenizer is there."""
        others = ("tokenizer.json", "tokenizer.model")
        if any(has_file(self.directory / name) for name in others):
            return None
        path = self.directory / tekken.FILE
        return tekken.read_tekken(self.directory) if has_file(path) else None

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return read_json(self.directory / "generation_config.json")

    @property
    def sentencepiece_model(self) -> Path | None:
        """`tokenizer.model`, when it is there."""
        path = self.directory / "tokenizer.model"
        return path if has_file(path) else None

    @property
    def model(self) -> Mapping[str, Any]:
        """The `model` object of tokenizer.json."""
        return _mapping(self.tokenizer_json.get("model"), "tokenizer.json: model")

    @cached_property
    def declared_vocab_size(self) -> int | None:
        """`vocab_size` of config.json (or of its text_config): the rows of the embedding."""
        for config in (self.config, self.config.get("text_config") or {}):
            size = config.get("vocab_size")
            if isinstance(size, int) and not isinstance(size, bool):
                if size <= 0:
                    raise InputError(f"config.json: vocab_size is {size}, expected more than 0")
                return size
        return None

    @cached_property
    def json_added_tokens(self) -> list[AddedToken]:
        """`added_tokens` of tokenizer.json, in file order."""
        entries = self.tokenizer_json.get("added_tokens") or []
        if not isinstance(entries, list):
            raise InputError("tokenizer.json: added_tokens is not a list")
        ids = [e.get("id") if isinstance(e, Mapping) else None for e in entries]
        tokens = [_added_token(*pair, "tokenizer.json") for pair in zip(entries, ids, strict=True)]
        check_added([token.content for token in tokens], "tokenizer.json")
        return tokens

    @cached_property
    def config_added_tokens(self) -> list[AddedToken]:
        """`added_tokens_decoder` of tokenizer_config.json, in file order."""
        decoder = _mapping(
            self.tokenizer_config.get("added_tokens_decoder"),
            "tokenizer_config.json: added_tokens_decoder",
        )
        tokens = [_added_token(e, key, "tokenizer_config.json") for key, e in decoder.items()]
        check_added([token.content for token in tokens], "tokenizer_config.json")
        return tokens

    @cached_property
    def legacy_added_tokens(self) -> dict[str, int]:
        """added_tokens.json: text → id (written by slow tokenizers)."""
        entries = read_json(self.directory / "added_tokens.json")
        check_added(entries, "added_tokens.json")
        for text, token_id in entries.items():
            if not isinstance(token_id, int) or token_id < 0:
                raise InputError(
                    f"added_tokens.json: {printable(text)!r} has id {token_id!r}, expected 0 or "
                    "more"
                )
        return entries

    def special_texts(self) -> dict[str, str]:
        """Role → token text from tokenizer_config.json, and from special_tokens_map.json where the
        former has no added_tokens_decoder (transformers reads the map only then).
        """
        texts: dict[str, str] = {}
        sources = [self.tokenizer_config]
        if "added_tokens_decoder" not in self.tokenizer_config:
            sources.append(read_json(self.directory / "special_tokens_map.json"))
        for source in sources:
            for role in SPECIAL_ROLES:
                text = token_text(source.get(f"{role}_token"))
                if text is not None:
                    texts.setdefault(role, text)
        return texts

    def added_tokens(self, vocab: Mapping[str, int]) -> dict[int, AddedToken]:
        """Return all added tokens by id, over a base `vocab`.

        They are tokenizer.json's, with flags overridden and new ones added by
        tokenizer_config.json. Then come special roles that name a token of the base vocabulary:
        transformers makes those added, special tokens on load.

        Raises InputError when two texts claim one id or one text claims two.
        """
        by_id: dict[int, AddedToken] = {}
        by_text: dict[str, int] = {}
        base_text = {token_id: text for text, token_id in vocab.items()}
        for token in (*self.json_added_tokens, *self.config_added_tokens):
            known = by_text.get(token.content, vocab.get(token.content))
            if known is not None and known != token.id:
                raise InputError(
                    f"token {printable(token.content)!r} has id {known} in tokenizer.json and id "
                    f"{token.id} in its added tokens",
                    next_step="save the tokenizer again with transformers, or fix the ids",
                )
            other = by_id[token.id].content if token.id in by_id else base_text.get(token.id)
            if other is not None and other != token.content:
                raise InputError(
                    f"id {token.id} is claimed by two tokens: {printable(other)!r} and "
                    f"{printable(token.content)!r}",
                    next_step="save the tokenizer again with transformers, or fix the ids",
                )
            by_id[token.id] = token
            by_text[token.content] = token.id
        for text in self.special_texts().values():
            if text in by_text:
                token = by_id[by_text[text]]
                by_id[token.id] = replace(token, special=True)
            elif text in vocab:
                token = AddedToken(vocab[text], text, special=True, normalized=False)
                by_id[token.id] = token
                by_text[text] = token.id
        return by_id

    def is_spare(self, token: AddedToken, n_vocab: int) -> bool:
        """Whether an added token past the embedding's `n_vocab` rows can be left out.

        It is a special token that no template uses, as `<image_soft_token>` in Gemma 3's text
        models. Of the roles it may have that of padding, which no inference feeds to a model.
        """
        roles = {role for role, text in self.special_texts().items() if text == token.content}
        if token.id < n_vocab or not roles <= {"pad"} or not (token.special or roles):
            return False
        return token.content not in json.dumps(self.chat_template(), ensure_ascii=False)

    def notes(self) -> list[str]:
        """Sentences for the user about what of these files is not in the artifact."""
        found = []
        rows = self.declared_vocab_size
        added = (*self.json_added_tokens, *self.config_added_tokens)
        spare = {t.content: t for t in added if rows is not None and self.is_spare(t, rows)}
        if spare:
            names = ", ".join(printable(text, 40) for text in list(spare)[:5])
            found.append(f"tokens past the embedding's rows are left out: {names}")
        stated = self.tokenizer_config.get("chat_template")
        if stated is not None and stated != self.chat_template():
            found.append(
                "two chat templates differ: chat_template.jinja is used, the one in "
                "tokenizer_config.json is not (transformers chooses the same)"
            )
        return found

    def _read_extra(self, path: Path) -> str:
        return read_text(path, _MAX_TEMPLATE_BYTES, below=self.directory)

    def chat_template(self) -> str | list[dict[str, str]] | None:
        """The chat template(s), from chat_template.jinja (with additional_chat_templates/*.jinja),
        else tokenizer_config.json, else chat_template.json; as transformers chooses. Upstream's
        SpecialVocab takes tokenizer_config.json first, which an updated template does not change.
        """
        template: Any = None
        jinja = self.directory / "chat_template.jinja"
        legacy = self.directory / "chat_template.json"
        if has_file(jinja):
            template = read_text(jinja)
            extra = sorted((self.directory / "additional_chat_templates").glob("*.jinja"))
            if len(extra) > _MAX_TEMPLATES:
                raise UnsafeInputError(
                    f"{self.directory}: {len(extra)} chat templates, more than {_MAX_TEMPLATES}"
                )
            if extra:
                template = [{"name": "default", "template": template}]
                template += [{"name": p.stem, "template": self._read_extra(p)} for p in extra]
        elif "chat_template" in self.tokenizer_config:
            template = self.tokenizer_config["chat_template"]
        elif has_file(legacy):
            template = read_json(legacy).get("chat_template")
        if template is None or isinstance(template, str):
            return template
        if isinstance(template, list) and all(
            isinstance(t, dict)
            and isinstance(t.get("name"), str)
            and isinstance(t.get("template"), str)
            for t in template
        ):
            return template
        raise InputError(
            "the chat template is neither text nor a list of named templates",
            next_step="correct chat_template in tokenizer_config.json",
        )


def check_added(texts: Iterable[str], where: str) -> None:
    """Raise UnsafeInputError for added tokens that no tokenizer has. They are searched in every
    text, so one of some MB keeps a build busy for minutes.
    """
    total = 0
    for text in texts:
        total += len(text)
        if len(text) > MAX_TOKEN_CHARACTERS or total > _MAX_ADDED_CHARACTERS:
            longest = (
                f"one of {len(text)} characters"
                if len(text) > MAX_TOKEN_CHARACTERS
                else (f"more than {_MAX_ADDED_CHARACTERS} characters in all")
            )
            raise UnsafeInputError(
                f"{where}: added tokens with {longest}; one has at most {MAX_TOKEN_CHARACTERS}",
                next_step="remove it from the tokenizer's files, or use the original ones",
            )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where} holds a {type(value).__name__}, expected an object")
    return value


def _added_token(entry: Any, token_id: Any, where: str) -> AddedToken:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
        raise InputError(f"{where}: added token {token_id!r} has no text")
    try:
        number = int(token_id)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise InputError(
            f"{where}: added token {printable(entry['content'])!r} has id {token_id!r}, expected "
            "0 or more"
        )
    flags = ("special", "lstrip", "rstrip", "single_word")
    return AddedToken(
        id=number,
        content=entry["content"],
        normalized=bool(entry.get("normalized", not entry.get("special", False))),
        **{flag: bool(entry.get(flag, False)) for flag in flags},
    )
