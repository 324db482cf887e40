"""Choose the file of a family's vocabulary, and the metadata to write with it: the rules of
upstream's `set_vocab` methods (conversion/{llama,qwen,gemma,phi}.py) as data, by GGUF architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gguf import GGUFValueType, Keys

from boardfit.converters.spec import KeyValue
from boardfit.converters.tokenizers import bpe, pretokenizer, reference
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.special import (
    SpecialTokens,
    declare_unknown_ends,
    end_of_turn_ids,
    read_special_tokens,
)
from boardfit.converters.tokenizers.vocabulary import LoadedTokenizer, Vocabulary
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError

Source = Literal["spm", "json"]


@dataclass(frozen=True)
class VocabRules:
    """How a vocabulary is loaded. `order` lists the files that are tried. `prefix_space` decides
    `add_space_prefix`: `config` copies tokenizer_config.json's (first or last, as upstream does),
    `never` writes false for SentencePiece. `pre` names a pre-tokenizer to take among equals.
    `gemma4`: the engine merges by rank, and puts BOS before every text.
    """

    order: tuple[Source, ...] = ("spm", "json")
    prefix_space: Literal["config", "config, last", "never"] | None = None
    phi3: bool = False
    llama_extras: bool = False
    pre: str | None = None
    gemma4: bool = False


RULES = {
    arch: VocabRules(**{**row, **({"order": tuple(row["order"])} if "order" in row else {})})
    for arch, row in load_toml("boardfit.converters.tokenizers", "known.toml")["rules"].items()
}


def load_tokenizer(
    directory: Path, config: Mapping[str, Any], arch: str | None = None, *, pre: str | None = None
) -> LoadedTokenizer:
    """Load the tokenizer of a checkpoint directory by the rules of `arch`, the GGUF architecture
    (None: the common rules). `pre` overrides the pre-tokenizer that is recognised.

    Raises InputError for files that are absent, malformed or at odds with the embedding's rows,
    UnsupportedModelError for a kind of tokenizer that the engine does not have.
    """
    files = TokenizerFiles(directory, config)
    rules = RULES.get(arch or "", VocabRules())
    source = _choose_source(files, rules)
    if source == "spm":
        vocabulary = bpe.load_sentence_piece(files, with_tokenizer_json=rules.phi3)
    elif bpe.is_byte_fallback(files):
        vocabulary = bpe.load_byte_fallback(files, keeps_merges=rules.gemma4)
    else:
        vocabulary = _load_byte_level(files, pre, rules.pre)
    ids = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    special = read_special_tokens(files, ids, n_vocab=len(ids))
    _check_ends(files, special, vocabulary)
    _check_starts(files, special, vocabulary)
    return LoadedTokenizer(
        vocabulary,
        special=special.metadata() + _trailing(files, rules, vocabulary),
        leading=_leading(files, rules),
        notes=files.notes(),
    )


def _load_byte_level(files: TokenizerFiles, pre: str | None, prefer: str | None) -> Vocabulary:
    """The vocabulary with the pre-tokenizer given, recognised, or else found by trying."""
    if pre is not None:
        return bpe.load_byte_level(files, pre)
    splitting = pretokenizer.describe(files.tokenizer_json)
    vocab = bpe.base_vocab(files)
    texts = {*vocab, *(token.content for token in files.added_tokens(vocab).values())}
    names = pretokenizer.candidate_names(
        splitting,
        ignore_merges=bool(files.model.get("ignore_merges", False)),
        vocab=texts,
        prefer=prefer,
    )
    vocabulary = bpe.load_byte_level(files, names[0])
    if pretokenizer.is_recognised(splitting):
        return vocabulary
    from boardfit.converters.tokenizers.verify import identify_pre  # brings the engine

    found = identify_pre(files, names, lambda name: replace(vocabulary, pre=name))
    return replace(vocabulary, pre=found)


def _choose_source(files: TokenizerFiles, rules: VocabRules) -> Source:
    if rules.phi3 and files.tokenizer_config.get("tokenizer_class") == "GPT2Tokenizer":
        return "json"
    for source in rules.order:
        if source == "spm" and files.sentencepiece_model is not None:
            return "spm"
        if source == "json" and files.tokenizer_json:
            return "json"
    raise InputError(
        f"{files.directory} has no tokenizer: looked for tokenizer.json, tokenizer.model and "
        "tekken.json",
        next_step="copy the checkpoint's tokenizer files beside its config.json",
    )


def _leading(files: TokenizerFiles, rules: VocabRules) -> list[KeyValue]:
    if files.config.get("model_type") == "gemma4_unified":
        return _suppressed(files)
    return _prefix_space(files) if rules.prefix_space == "config" else []


def _prefix_space(files: TokenizerFiles) -> list[KeyValue]:
    value = files.tokenizer_config.get("add_prefix_space")
    if not isinstance(value, bool):
        return []
    return [KeyValue(Keys.Tokenizer.ADD_PREFIX, value, GGUFValueType.BOOL)]


def _suppressed(files: TokenizerFiles) -> list[KeyValue]:
    """Tokens that are never generated (conversion/gemma.py, `Gemma4UnifiedModel`)."""
    ids = files.generation_config.get("suppress_tokens")
    if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
        return []
    key, array = "tokenizer.ggml.suppress_tokens", GGUFValueType.ARRAY
    return [KeyValue(key, ids, array, GGUFValueType.INT32)]


def _trailing(files: TokenizerFiles, rules: VocabRules, vocabulary: Vocabulary) -> list[KeyValue]:
    entries = []
    size = files.declared_vocab_size or 32000
    if rules.llama_extras and size == 32016:
        # CodeLlama's end of an infill (conversion/llama.py).
        entries.append(KeyValue(Keys.Tokenizer.EOT_ID, 32010, GGUFValueType.UINT32))
    if rules.llama_extras and size == 49152:
        # Granite's small models (conversion/llama.py).
        entries.append(KeyValue(Keys.Tokenizer.ADD_BOS, False, GGUFValueType.BOOL))
    if rules.prefix_space == "config, last":
        entries += _prefix_space(files)
    if rules.prefix_space == "never" and vocabulary.model in ("llama", "gemma4"):
        entries.append(KeyValue(Keys.Tokenizer.ADD_PREFIX, False, GGUFValueType.BOOL))
    if vocabulary.model == "gemma4":
        entries.append(KeyValue(Keys.Tokenizer.ADD_BOS, True, GGUFValueType.BOOL))
    return entries


def _check_ends(files: TokenizerFiles, special: SpecialTokens, vocabulary: Vocabulary) -> None:
    declare_unknown_ends(special, end_of_turn_ids(files), list(vocabulary.tokens))
    if "eos" not in special.ids:
        # Without one the engine takes token 11 (BPE) or 2 (SentencePiece), without a check.
        raise InputError(
            "no end-of-sequence token: neither tokenizer_config.json nor config.json names one",
            next_step='set "eos_token" in tokenizer_config.json or "eos_token_id" in config.json',
        )


def _check_starts(files: TokenizerFiles, special: SpecialTokens, vocabulary: Vocabulary) -> None:
    """Write that no BOS is added, if the engine would add one and the checkpoint does not."""
    by_default = vocabulary.kind == "spm" or any(
        pre.adds_bos for pre in pretokenizer.PRE_TYPES if pre.name == vocabulary.pre
    )
    if by_default and "bos" not in special.add and files.tokenizer_json:
        encoder = reference.hugging_face(files)
        plain = reference.encode_ids(encoder, "x", special=False)
        if reference.encode_ids(encoder, "x", special=True) == plain:
            special.add["bos"] = False
    if special.add.get("bos", by_default) and "bos" not in special.ids and vocabulary.kind == "bpe":
        raise InputError(
            "a BOS token is to be added to every text, but none is named",
            next_step='set "bos_token" in tokenizer_config.json',
        )
