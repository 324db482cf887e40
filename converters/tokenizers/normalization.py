"""What a checkpoint's normalizer makes of a text. The engine runs none.

SentencePiece's defaults bring text into NFKC, and leave out spaces that stand double or at an end
(`remove_extra_whitespaces`). A vocabulary is right when the engine makes the checkpoint's ids of
the normalized text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from boardfit.converters.tokenizers import reference
from boardfit.converters.tokenizers.bpe import SPACE_MARK
from boardfit.converters.tokenizers.files import AddedToken, TokenizerFiles

Normalize = Callable[[str], str]


def find_normalizer(files: TokenizerFiles, added: Iterable[AddedToken]) -> Normalize | None:
    """The checkpoint's normalizer as text to text; None where it has none.

    Added tokens are cut out first and stay as they are.
    """
    plain = _from_tokenizer_json(files) if files.tokenizer_json else _from_sentence_piece(files)
    if plain is None:
        return None
    cut = sorted({token.content for token in added if token.content}, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, cut)) + ")") if cut else None

    def normalize(text: str) -> str:
        parts = pattern.split(text) if pattern else [text]
        # Every second part is an added token.
        return "".join(part if i % 2 else plain(part) for i, part in enumerate(parts))

    return normalize


def _from_tokenizer_json(files: TokenizerFiles) -> Normalize | None:
    normalizer = reference.hugging_face(files).normalizer
    if normalizer is None:
        return None
    return _without_marks(lambda text: str(normalizer.normalize_str(text)))


def _from_sentence_piece(files: TokenizerFiles) -> Normalize:
    processor = reference.sentence_piece(files)
    return _without_marks(lambda text: str(processor.Normalize(text)))


def _without_marks(normalize: Normalize) -> Normalize:
    """Spaces for SentencePiece's marks, without the one that is put before every text: the engine
    puts it there too.
    """
    has_prefix = normalize("x").startswith(SPACE_MARK)

    def plain(text: str) -> str:
        normalized = normalize(text).replace(SPACE_MARK, " ")
        return normalized.removeprefix(" ") if has_prefix else normalized

    return plain
