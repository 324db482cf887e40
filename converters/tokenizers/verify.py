"""Verify a written vocabulary by what it does: the engine's ids against the checkpoint's own.

Works on a vocab-only file and on the full model alike: no tensor is read. Not covered: named
templates other than the default, and what `limits` of the report lists.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.converters.tokenizers import turns
from boardfit.converters.tokenizers.corpus import torture_corpus
from boardfit.converters.tokenizers.engine_vocab import EngineVocab, open_vocab
from boardfit.converters.tokenizers.files import TokenizerFiles, read_json
from boardfit.converters.tokenizers.limits import TokenizerLimit, list_limits
from boardfit.converters.tokenizers.reference import ReferenceTokenizer, load_reference
from boardfit.converters.tokenizers.special import end_of_turn_ids
from boardfit.converters.tokenizers.vocabulary import LoadedTokenizer, Vocabulary, write_vocab_only
from boardfit.edge.errors import IntegrityError, UnsupportedModelError
from boardfit.edge.units import printable

_SHOWN_IDS = 24
_WHOLE_TEXTS = ("", "Hello world", " x", "Привет\n")


@dataclass(frozen=True)
class VerifyReport:
    """What was compared and found equal. `limits` are sentences about what the engine does
    otherwise than the checkpoint, each with the number of texts on which it did.
    """

    source: str
    pre: str
    n_texts: int
    n_tokens: int
    eog_ids: tuple[int, ...]
    turn_end: str | None
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One text on which the engine's ids are not the checkpoint's."""

    text: str
    engine: list[int]
    checkpoint: list[int]

    def __str__(self) -> str:
        pairs = enumerate(zip(self.engine, self.checkpoint, strict=False))
        shorter = min(len(self.engine), len(self.checkpoint))
        at = next((n for n, (a, b) in pairs if a != b), shorter)
        return (
            f"text {printable(self.text)!r} differs from id {at} on: "
            f"the engine gives {_show_ids(self.engine, at)}, "
            f"the checkpoint's tokenizer {_show_ids(self.checkpoint, at)}"
        )


def verify_vocabulary(
    gguf_path: Path,
    directory: Path,
    config: Mapping[str, Any] | None = None,
    *,
    accept_normalization: bool = False,
    generates: bool = True,
) -> VerifyReport:
    """Hold the vocabulary in `gguf_path` against the tokenizer files in `directory`.

    Raises IntegrityError on the first difference, with the text and both id lists, and where the
    engine normalizes no text as the checkpoint does, unless that is accepted. What a model writes
    is not checked unless it `generates`. Raises InputError for a checkpoint whose files are at odds
    with themselves; EngineMissingError without llama-cpp-python.
    """
    files = TokenizerFiles(
        directory, read_json(directory / "config.json") if config is None else config
    )
    reference = load_reference(files)
    with open_vocab(gguf_path) as engine:
        pre = engine.header.text("tokenizer.ggml.pre") or ""
        limits = list_limits(files, pre, reference.added)
        texts = torture_corpus([token.content for token in reference.added])
        excused = compare(engine, reference, texts, limits)
        _check_rows(engine, files)
        if not accept_normalization:
            _refuse_normalization(excused, len(texts))
        forced = _check_whole(engine, reference, limits)
        end = None
        if generates:
            _check_round_trip(engine, reference)
            template = turns.check_template(files, engine)
            tail = turns.turn_end(template, files) if template is not None else None
            end = turns.check_stops(engine, end_of_turn_ids(files), tail)
        return VerifyReport(
            source=reference.source,
            pre=pre,
            n_texts=len(texts),
            n_tokens=engine.n_tokens,
            eog_ids=tuple(engine.eog_ids()),
            turn_end=end,
            limits=(
                *(f"{limit.explanation} ({n} of {len(texts)} texts)" for limit, n in excused if n),
                *forced,
            ),
        )


def differences(
    engine: EngineVocab, reference: ReferenceTokenizer, texts: Sequence[str]
) -> Iterator[Difference]:
    """Texts on which the engine's ids are not the checkpoint's, in order."""
    for text, ids in zip(texts, reference.encode_batch(texts), strict=True):
        got = engine.encode(text)
        if got != ids:
            yield Difference(text, got, ids)


def compare(
    engine: EngineVocab,
    reference: ReferenceTokenizer,
    texts: Sequence[str],
    limits: Sequence[TokenizerLimit],
) -> list[tuple[TokenizerLimit, int]]:
    """How many texts each limit excused. Raises IntegrityError on a difference that none does."""
    excused = dict.fromkeys(range(len(limits)), 0)
    for found in differences(engine, reference, texts):
        number = next(
            (n for n, limit in enumerate(limits) if _is_excused(limit, found, engine)), None
        )
        if number is None:
            raise _refusal(found)
        excused[number] += 1
    return [(limits[number], n) for number, n in excused.items()]


def identify_pre(
    files: TokenizerFiles,
    names: Sequence[str],
    build: Callable[[str], Vocabulary],
) -> str:
    """The first of the pre-tokenizers `names` with which the engine gives the checkpoint's ids,
    else the first that differs only where a limit of the engine's explains it. `build(name)` is the
    vocabulary with it. Raises UnsupportedModelError with the text on which the nearest name
    differs.
    """
    reference = load_reference(files)
    texts = torture_corpus([token.content for token in reference.added])
    fallback: str | None = None
    nearest: tuple[int, str, Difference] | None = None
    with tempfile.TemporaryDirectory(prefix="boardfit-vocab-") as folder:
        path = Path(folder) / "vocab.gguf"
        for name in names:
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
    if fallback is not None:
        return fallback
    assert nearest is not None
    raise UnsupportedModelError(
        "tokenizer.json splits text by a pattern that the engine does not have; the nearest, "
        f"{nearest[1]!r}, differs on {nearest[0]} of {len(texts)} texts, first: {nearest[2]}",
        next_step="report the model, so that its pattern can be added to the engine",
    )


def _is_excused(limit: TokenizerLimit, found: Difference, engine: EngineVocab) -> bool:
    if not limit.applies(found.text):
        return False
    return limit.instead is None or engine.encode(limit.instead(found.text)) == found.checkpoint


def _refusal(found: Difference) -> IntegrityError:
    return IntegrityError(
        f"the converted vocabulary splits text differently than the checkpoint: {found}",
        next_step="report the model; until then, convert it with upstream's converter at your own "
        "risk and come in through the GGUF",
    )


def _check_rows(engine: EngineVocab, files: TokenizerFiles) -> None:
    rows = files.declared_vocab_size
    if rows is not None and engine.n_tokens != rows:
        raise IntegrityError(
            f"the file has {engine.n_tokens} tokens, config.json has vocab_size {rows}"
        )


def _refuse_normalization(excused: Sequence[tuple[TokenizerLimit, int]], n_texts: int) -> None:
    found = [(limit, n) for limit, n in excused if n and limit.needs_consent]
    if not found:
        return
    limit, n = found[0]
    raise IntegrityError(
        "the converted vocabulary splits text differently than the checkpoint, and its normalizer "
        f"alone explains it, not a wrong vocabulary: {limit.explanation} ({n} of {n_texts} texts)",
        next_step="--accept-tokenizer builds it all the same: text that is normalized already is "
        "read alike",
    )


def _check_whole(
    engine: EngineVocab, reference: ReferenceTokenizer, limits: Sequence[TokenizerLimit]
) -> list[str]:
    """Tokens that are put around a text: the engine's choice against the checkpoint's. Returns a
    sentence for each that the engine puts regardless of the file.
    """
    if reference.encode_whole is None:
        return []
    forced = []
    # Source: src/llama-vocab.cpp, "workaround for Gemma 4".
    is_forced = engine.header.text("tokenizer.ggml.model") == "gemma4"
    for text in _WHOLE_TEXTS:
        got, expected = engine.encode(text, add_special=True), reference.encode_whole(text)
        if is_forced and got[1:] == expected:
            got = expected
            forced = ["the engine puts BOS before every text, the checkpoint only in its template"]
        others = [
            limit.instead(text)
            for limit in limits
            if limit.needs_consent and limit.instead is not None and limit.applies(text)
        ]
        if got != expected and expected not in [
            engine.encode(other, add_special=True) for other in others
        ]:
            raise IntegrityError(
                "special tokens around a text differ from the checkpoint: "
                f"{Difference(text, got, expected)}",
                next_step="make add_bos_token and add_eos_token in tokenizer_config.json agree "
                "with the post_processor of tokenizer.json",
            )
    return forced


def _check_round_trip(engine: EngineVocab, reference: ReferenceTokenizer) -> None:
    """The bytes of a text's tokens are the text's, except a leading space, or what the checkpoint
    makes of the same tokens.
    """
    for text in torture_corpus():
        ids = engine.encode(text)
        data = engine.decode(ids)
        if data.lstrip(b" ") == text.encode("utf-8").lstrip(b" "):
            continue
        got, expected = data.decode("utf-8", "replace"), reference.decode(ids)
        if got.lstrip(" ") != expected.lstrip(" "):
            raise IntegrityError(
                f"text {printable(text)!r} does not come back from its tokens {_show_ids(ids, 0)}: "
                f"got {printable(got)!r}, the checkpoint's tokenizer gives {printable(expected)!r}"
            )


def _show_ids(ids: Sequence[int], at: int) -> str:
    start = max(0, at - 4)
    shown = ", ".join(map(str, ids[start : start + _SHOWN_IDS]))
    before = "…, " if start else ""
    return f"[{before}{shown}{', …' if start + _SHOWN_IDS < len(ids) else ''}]"
