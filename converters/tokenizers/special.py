"""Special tokens and the chat template as GGUF metadata.

The rules (which file wins, in which order keys are written) are those of upstream's
gguf-py/gguf/vocab.py, SpecialVocab, with three corrections, each only where upstream would write a
vocabulary that stops or starts wrongly: token entries that are objects are compared by their text,
a role whose text is only in the base vocabulary is found there, and end-of-turn tokens that the
engine would not know by their text are written as `eot`/`eom`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFValueType, Keys

from boardfit.converters.spec import KeyValue
from boardfit.converters.tokenizers.files import SPECIAL_ROLES, TokenizerFiles, token_text
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError

# Roles with a GGUF key; the others (cls, prefix, …) have none and are not written.
ROLE_KEYS = {
    role: getattr(Keys.Tokenizer, f"{role.upper()}_ID")
    for role in ("bos", "eos", "unk", "sep", "pad", "mask", "eot", "eom")
}
_ADD_KEYS = {role: getattr(Keys.Tokenizer, f"ADD_{role.upper()}") for role in ("bos", "eos", "sep")}
_END_ROLES = ("eos", "eot", "eom")
ENGINE_EOG_TEXTS = frozenset(
    load_toml("boardfit.converters.tokenizers", "known.toml")["engine_eog_texts"]
)


@dataclass
class SpecialTokens:
    """Content of the files: ids by role, which of them are added to every text, the template."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    template: str | list[dict[str, str]] | None = None

    def metadata(self) -> list[KeyValue]:
        """GGUF entries in upstream's order: ids, add flags, template."""
        entries = [
            KeyValue(ROLE_KEYS[role], token_id, GGUFValueType.UINT32)
            for role, token_id in self.ids.items()
            if role in ROLE_KEYS
        ]
        entries += [
            KeyValue(_ADD_KEYS[role], value, GGUFValueType.BOOL)
            for role, value in self.add.items()
            if role in _ADD_KEYS
        ]
        return entries + template_metadata(self.template)


def template_metadata(template: str | list[dict[str, str]] | None) -> list[KeyValue]:
    """`tokenizer.chat_template`, and the named ones beside it where a checkpoint has several."""
    if template is None:
        return []
    if isinstance(template, str):
        return [KeyValue(Keys.Tokenizer.CHAT_TEMPLATE, template, GGUFValueType.STRING)]
    entries, names, default = [], [], None
    for choice in template:
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in choice["name"])
        if name == "default":
            default = choice["template"]
        elif name and name not in names:
            names.append(name)
            key = Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name)
            entries.append(KeyValue(key, choice["template"], GGUFValueType.STRING))
    if names:
        # Upstream writes them in the order of a Python set; sorted, so that bytes repeat.
        entries.append(
            KeyValue(
                Keys.Tokenizer.CHAT_TEMPLATES,
                sorted(names),
                GGUFValueType.ARRAY,
                GGUFValueType.STRING,
            )
        )
    if default is not None:
        entries.append(KeyValue(Keys.Tokenizer.CHAT_TEMPLATE, default, GGUFValueType.STRING))
    return entries


def read_special_tokens(
    files: TokenizerFiles,
    vocab: Mapping[str, int],
    *,
    n_vocab: int | None = None,
    roles: Iterable[str] = SPECIAL_ROLES,
) -> SpecialTokens:
    """Special tokens of a checkpoint. `vocab` maps every token's text to its id; ids at or past
    `n_vocab` are not written.
    """
    special = SpecialTokens()
    texts = {role: token_text(files.tokenizer_config.get(f"{role}_token")) for role in roles}
    if files.tokenizer_json:
        if files.tokenizer_config:
            # Roberta-like names for the same roles.
            texts["bos"] = texts.get("bos") or texts.get("cls")
            texts["eos"] = texts.get("eos") or texts.get("sep")
        _read_post_processor(files.tokenizer_json.get("post_processor"), texts, special.add)
    if files.tokenizer_config:
        special.template = files.chat_template()
        for role, text in texts.items():
            flag = files.tokenizer_config.get(f"add_{role}_token")
            if isinstance(flag, bool):
                special.add.setdefault(role, flag)
            first = next((t.id for t in files.json_added_tokens if t.content == text), None)
            _set_id(special.ids, role, first, n_vocab)
    text_config = files.config.get("text_config") or {}
    for role in texts:
        declared = files.config.get(f"{role}_token_id")
        _set_id(
            special.ids,
            role,
            text_config.get(f"{role}_token_id") if declared is None else declared,
            n_vocab,
        )
    for role in ("bos", "eos"):
        _set_id(special.ids, role, vocab.get(files.special_texts().get(role, "")), n_vocab)
    return special


def end_of_turn_ids(files: TokenizerFiles) -> list[int]:
    """Ids at which a generation must stop: `eos_token_id` of generation_config.json and
    config.json, each a number or a list, without repeats.
    """
    ids: list[int] = []
    text_config = files.config.get("text_config") or {}
    for source in (files.generation_config, files.config, text_config):
        value = source.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if token_id is None:
                continue
            if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
                raise InputError(
                    f"eos_token_id is {value!r}, expected token ids of 0 or more",
                    next_step="correct generation_config.json or config.json",
                )
            if token_id not in ids:
                ids.append(token_id)
    return ids


def declare_unknown_ends(special: SpecialTokens, ends: Iterable[int], tokens: list[str]) -> None:
    """Give end-of-turn tokens that the engine does not know by text one of the roles eos, eot, eom.

    Raises InputError when an id lies past the vocabulary, or when no role is left.
    """
    for token_id in ends:
        if token_id >= len(tokens):
            raise InputError(
                f"eos_token_id {token_id} lies past the vocabulary of {len(tokens)} tokens",
                next_step="correct generation_config.json or config.json",
            )
        known = (special.ids.get(role) for role in _END_ROLES)
        if tokens[token_id] in ENGINE_EOG_TEXTS or token_id in known:
            continue
        free = next((role for role in _END_ROLES if role not in special.ids), None)
        if free is None:
            raise InputError(
                f"token {token_id} ({tokens[token_id]!r}) ends a turn, but the engine knows it "
                "neither by text nor by role, and the roles eos, eot and eom are taken",
                next_step="keep at most three eos_token_id values in generation_config.json",
            )
        special.ids[free] = token_id


def _set_id(ids: dict[str, int], role: str, token_id: Any, n_vocab: int | None) -> None:
    if not isinstance(token_id, int) or isinstance(token_id, bool) or role in ids:
        return
    if token_id < 0:
        raise InputError(f"{role}_token_id is {token_id}, expected 0 or more")
    if n_vocab is None or token_id < n_vocab:
        ids[role] = token_id


def _read_post_processor(
    processor: Any, texts: dict[str, str | None], add: dict[str, bool]
) -> None:
    """Which special tokens the post-processor puts around a text. `texts` gains the roles that
    only the post-processor names.
    """
    if not isinstance(processor, Mapping):
        return
    for step in processor.get("processors", [processor]):
        kind = step.get("type")
        if kind == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            add.update(bos=True, eos=True, sep=True)
        elif kind == "TemplateProcessing":
            _read_template_processing(step, texts, add)


def _read_template_processing(
    step: Mapping[str, Any], texts: dict[str, str | None], add: dict[str, bool]
) -> None:
    def special(piece: Mapping[str, Any]) -> str | None:
        return (piece.get("SpecialToken") or {}).get("id")

    single = step.get("single") or []
    if len(single) < 2:
        return
    first, last = special(single[0]), special(single[-1])
    if first:
        texts["bos"] = texts.get("bos") or first
        add["bos"] = first in (texts["bos"], texts.get("cls"))
    if last:
        if texts.get("eos") and texts["eos"] != last:
            # The text's end is not the model's eos: keep the latter as end of turn.
            role = "eom" if "eot" in texts else "eot"
            texts[role] = texts["eos"]
        texts["eos"] = last
        add["eos"] = True
    pair = step.get("pair") or []
    start = 1 if pair and first and special(pair[0]) == first else 0
    stop = len(pair) - (1 if pair and last and special(pair[-1]) == last else 0)
    inner = [special(piece) for piece in pair[start:stop]]
    if len(inner) > 2 and inner[0] is None and inner[-1] is None:
        # A separator counts when it stands alone before B without an end of text, or second.
        separators = {texts.get("sep"), texts.get("eos")} - {None}
        add["sep"] = (inner[1] in separators and not last) or (
            len(inner) == 4 and inner[2] in separators
        )
