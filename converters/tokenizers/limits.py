"""Known differences between the engine and every checkpoint of a kind, with any converter.

A difference in ids is a refusal, except on texts that one of these limits explains; they are
derived from the tokenizer's definition, never from the outcome, and each is reported to the user.

The engine runs no normalizer. SentencePiece's defaults bring text into NFKC, and leave out spaces
that stand double or at an end (`remove_extra_whitespaces`). A vocabulary is right when the engine
makes the checkpoint's ids of the normalized text.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from boardfit.converters.tokenizers import reference
from boardfit.converters.tokenizers.bpe import SPACE_MARK
from boardfit.converters.tokenizers.files import AddedToken, TokenizerFiles
from boardfit.converters.tokenizers.pretokenizer import flatten
from boardfit.edge.units import printable

# Pre-tokenizers whose patterns the engine approximates (llama.cpp src/llama-vocab.cpp).
_CASED_PATTERNS = frozenset({"gpt-4o", "llama4", "tekken", "kanana2", "talkie", "minimax-m2"})
# WordPiece takes longer words for unknown: max_input_chars_per_word of every published BERT.
_LONG_WORD = re.compile(r"\S{101,}")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
Normalize = Callable[[str], str]
_SPACE_PATTERNS = frozenset({"deepseek-llm", "deepseek-coder"})


@dataclass(frozen=True)
class TokenizerLimit:
    """`applies(text)` is whether the engine may differ on a text. `instead(text)`, where there
    is one, is the text on which it has to agree all the same. With `needs_consent` the user has to
    accept that it differs.
    """

    explanation: str
    applies: Callable[[str], bool]
    instead: Callable[[str], str] | None = None
    needs_consent: bool = False


def find_limits(
    files: TokenizerFiles, pre: str, added: tuple[AddedToken, ...]
) -> Iterator[TokenizerLimit]:
    """The limits that hold for one checkpoint, converted with pre-tokenizer `pre`."""
    normalizers = flatten(files.tokenizer_json.get("normalizer"), "normalizers")
    if any(step.get("type") == "NFC" for step in normalizers):
        yield TokenizerLimit(
            "the engine does not bring text into Unicode form NFC; decomposed letters become "
            "other tokens than in the checkpoint",
            lambda text: not unicodedata.is_normalized("NFC", text),
            lambda text: unicodedata.normalize("NFC", text),
        )
    if files.tokenizer_json.get("model", {}).get("type") == "WordPiece":
        yield TokenizerLimit(
            "the engine's WordPiece reads Korean, vowel signs of Asian scripts, control "
            "characters and very long words otherwise than the checkpoint",
            lambda text: _LONG_WORD.search(text) is not None or any(map(_is_odd_piece, text)),
        )
    if pre in _CASED_PATTERNS:
        yield TokenizerLimit(
            f"the engine's {pre!r} pattern ignores combining marks and the case of letters "
            "outside ASCII",
            lambda text: any(map(_has_marks_or_case, text)),
        )
    if pre in _SPACE_PATTERNS:
        yield TokenizerLimit(
            f"the engine's {pre!r} pattern treats spaces outside ASCII differently",
            lambda text: any(not c.isascii() and c.isspace() for c in text),
        )
    rows = files.declared_vocab_size
    spare = [t for t in added if rows is not None and files.is_spare(t, rows)]
    if spare:
        yield TokenizerLimit(
            "special tokens past the embedding's rows are left out: "
            + ", ".join(printable(token.content) for token in spare[:5]),
            lambda text: any(token.content in text for token in spare),
        )
    stripping = [token for token in added if token.lstrip or token.rstrip]
    if stripping:
        yield TokenizerLimit(
            "the engine keeps whitespace around special tokens that the checkpoint strips "
            '(it strips only for models whose name contains "phi-3")',
            lambda text: any(_is_stripped(token, text) for token in stripping),
        )
    normalize = find_normalizer(files, added)
    if normalize is not None:
        yield TokenizerLimit(
            "the engine does not normalize text as the checkpoint does (spaces that stand "
            "double or at an end, Unicode forms, case); such text becomes other tokens",
            lambda text: normalize(text) != text,
            normalize,
            needs_consent=True,
        )
    if _has_metaspace(files):
        yield TokenizerLimit(
            "the engine puts a space before a text and after every special token, the "
            "checkpoint only before the first word, where none stands already",
            lambda text: text.startswith(" ") or any(t.content in text for t in added),
        )


def _is_odd_piece(char: str) -> bool:
    """A character that the engine drops, keeps or takes apart, and BertNormalizer does not."""
    kind = unicodedata.category(char)
    return (
        kind in ("Mc", "Me") or (kind == "Cc" and char not in "\t\n\r") or bool(_HANGUL.match(char))
    )


def _has_marks_or_case(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] == "M" or (not char.isascii() and category in ("Lu", "Ll", "Lt", "Lm", "Lo"))


def _is_stripped(token: AddedToken, text: str) -> bool:
    parts = text.split(token.content)
    right = token.rstrip and any(part[:1].isspace() for part in parts[1:])
    left = token.lstrip and any(part[-1:].isspace() for part in parts[:-1])
    return right or left


def _has_metaspace(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json has a Metaspace step, which unlike SentencePiece and the engine adds
    no second space to a text that starts with one.
    """
    steps = flatten(files.tokenizer_json.get("pre_tokenizer"), "pretokenizers")
    return any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in steps
    )


def find_normalizer(files: TokenizerFiles, added: Iterable[AddedToken]) -> Normalize | None:
    """The checkpoint's normalizer as text to text; None where it has none.

    Added tokens are cut out first and stay as they are.
    """
    if not files.tokenizer_json:
        processor = reference.sentence_piece(files)
        plain = _without_marks(lambda text: str(processor.Normalize(text)))
    elif (normalizer := reference.hugging_face(files).normalizer) is not None:
        plain = _without_marks(lambda text: str(normalizer.normalize_str(text)))
    else:
        return None
    cut = sorted({token.content for token in added if token.content}, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, cut)) + ")") if cut else None

    def normalize(text: str) -> str:
        parts = pattern.split(text) if pattern else [text]
        # Every second part is an added token.
        return "".join(part if i % 2 else plain(part) for i, part in enumerate(parts))

    return normalize


def _without_marks(normalize: Normalize) -> Normalize:
    """Spaces for SentencePiece's marks, without the one that is put before every text: the engine
    puts it there too.
    """
    has_prefix = normalize("x").startswith(SPACE_MARK)

    def plain(text: str) -> str:
        normalized = normalize(text).replace(SPACE_MARK, " ")
        return normalized.removeprefix(" ") if has_prefix else normalized

    return plain
