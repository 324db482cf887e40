"""Find the engine's pre-tokenizer for an unknown pattern by trying.

Each behaviour that the engine has is written, loaded and compared with the checkpoint on the
corpus.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from boardfit.converters.tokenizers.corpus import torture_corpus
from boardfit.converters.tokenizers.engine_vocab import open_vocab
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.limits import list_limits
from boardfit.converters.tokenizers.reference import load_reference
from boardfit.converters.tokenizers.verify import Difference, differences
from boardfit.converters.tokenizers.vocab_file import write_vocab_only
from boardfit.converters.tokenizers.vocabulary import LoadedTokenizer, Vocabulary
from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.terminal.progress import Progress


def identify_pre(
    files: TokenizerFiles,
    names: Sequence[str],
    build: Callable[[str], Vocabulary],
    progress: Progress | None = None,
) -> str:
    """Find the first of `names` with which the engine gives the checkpoint's ids.

    Else it is the first that differs only where a limit of the engine's pattern explains it.

    `build(name)` is the vocabulary with that pre-tokenizer. Takes about a second a name for 150,000
    tokens. Raises UnsupportedModelError with the text on which the nearest name differs.
    """
    reference = load_reference(files)
    texts = torture_corpus([token.content for token in reference.added])
    fallback: str | None = None
    nearest: tuple[int, str, Difference] | None = None
    with tempfile.TemporaryDirectory(prefix="boardfit-vocab-") as folder:
        path = Path(folder) / "vocab.gguf"
        for number, name in enumerate(names):
            write_vocab_only(LoadedTokenizer(build(name), special=()), "llama", path)
            limits = list_limits(files, name, reference.added)
            with open_vocab(path) as engine:
                found = [
                    (difference, [limit for limit in limits if limit.applies(difference.text)])
                    for difference in differences(engine, reference, texts)
                ]
            # What an `instead` explains (normalization) is no matter of the pattern.
            if all(any(limit.instead for limit in why) for _, why in found):
                return name
            unexplained = [difference for difference, why in found if not why]
            if not unexplained:
                fallback = fallback or name
            elif nearest is None or len(unexplained) < nearest[0]:
                nearest = (len(unexplained), name, unexplained[0])
            if progress is not None:
                progress(number + 1, len(names))
    if fallback is not None:
        return fallback
    assert nearest is not None
    raise UnsupportedModelError(
        "tokenizer.json splits text by a pattern that the engine does not have; the nearest, "
        f"{nearest[1]!r}, differs on {nearest[0]} of {len(texts)} texts, first: {nearest[2]}",
        next_step="report the model, so that its pattern can be added to the engine",
    )
