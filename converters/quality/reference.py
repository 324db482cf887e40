"""The source's own log-probabilities on a text: computed once, kept in the cache, mapped.

They come from the source's weights unquantized: an F32 GGUF of the checkpoint through llama.cpp,
whose logits are proved equal to transformers' family by family (tests/…/test_logits.py), so
that no torch is needed. F32, because ggml rounds activations too where weights are stored in F16 or
BF16. A GGUF source is its own reference, as it stands.

    CACHE/quality/<key>.npy      log-probabilities [n_scored, n_vocab], float32 or float16
    CACHE/quality/<key>.json     what they are of, and the tokens that were read
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boardfit.converters.formats.gguf.recipe import GgufRecipe
from boardfit.converters.formats.gguf.write import write_many
from boardfit.converters.quality import divergence
from boardfit.converters.quality.texts import QualityText
from boardfit.converters.spec import ModelSpec
from boardfit.edge.disk.atomic import new_file, write_atomic
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines import EngineSettings, is_installed, open_engine
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.errors import DoesNotFitError, EngineMissingError, UsageError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.progress import Progress, Reporter
from boardfit.edge.types import Engine, LogitsEngine

#: Tokens in a window, half of which are scored; fewer where the model or the plan has less context.
WINDOW = 512
#: Tokens that are read: as many as the arithmetic of 4·10¹² multiply-adds pays for, within limits.
_MULTIPLY_ADDS, _FEWEST_TOKENS, _MOST_TOKENS = 4e12, 1024, 4096
#: Above it, float16 is stored: it moves a mean divergence by less than 10⁻⁵.
_FLOAT32_BYTES = 256 * 1024 * 1024
_CACHE_BYTES = 4 * 1024 * 1024 * 1024
_FORMULA = 1  # raised when the same inputs would give other figures

# Not among the named recipes: it is a reference and never runs on a board.
FULL = GgufRecipe("f32", "F32", 0, "F32", "Single precision: what artifacts are measured against.")
# GGUF's token type of padding rows (gguf-py, TokenType.UNUSED).
_UNUSED = 5


@dataclass(frozen=True)
class QualityReference:
    """One text's tokens and the source's log-probabilities at the scored positions. `tokens` are
    whole windows, `positions` those of each window that are scored, `log_probs` is mapped,
    `[n_scored, n_vocab]`, in that order.
    """

    text: QualityText
    tokens: tuple[int, ...]
    window: int
    positions: tuple[tuple[int, ...], ...]
    n_vocab: int
    log_probs: np.ndarray
    about: dict[str, Any]

    def parts(self) -> Iterator[tuple[list[int], tuple[int, ...], np.ndarray]]:
        """For every window: its tokens, the scored positions, the source's log-probabilities."""
        row = 0
        for window, positions in zip(
            divergence.windows(len(self.tokens), self.window), self.positions, strict=True
        ):
            yield list(self.tokens[window]), positions, self.log_probs[row : row + len(positions)]
            row += len(positions)


def read_references(
    spec: ModelSpec,
    texts: Sequence[QualityText],
    window: int,
    work: Path,
    *,
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> list[QualityReference]:
    """References for all texts, from the cache or computed now; `work` has room for the source in
    F32. Raises DoesNotFitError when the source does not fit this host's memory or disk,
    EngineMissingError without llama.cpp, UsageError for a text shorter than a window.
    """
    reporter = reporter or Reporter()
    if not is_installed("llama_cpp"):
        raise EngineMissingError(
            "measuring quality needs llama.cpp on the host",
            next_step=f"{install_line('llama')}, or build with --no-quality",
        )
    keys = [cache_key(spec, text, window) for text in texts]
    found = [load(key, text) for key, text in zip(keys, texts, strict=True)]
    if all(found):
        return [reference for reference in found if reference]
    with full_model(spec, work, threads, reporter) as path:
        reporter.stage("reading the quality text with the source model")
        settings = EngineSettings(n_ctx=window, kv_type="f32", n_threads=threads, repack=False)
        with closing(open_engine("llama_cpp", built_file(path), settings)) as engine:
            for i, (key, text) in enumerate(zip(keys, texts, strict=True)):
                if found[i] is None:
                    compute(spec, engine, text, window, key, reporter.progress)
                    found[i] = load(key, text)
    prune(keys)
    return [reference for reference in found if reference]


def cache_key(spec: ModelSpec, text: QualityText, window: int) -> str:
    from boardfit.converters.spec import tool_versions

    parts = [
        _FORMULA, spec.source.fingerprint, text.sha256, window, n_tokens_wanted(spec),
        tool_versions()["llama-cpp-python"],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def n_tokens_wanted(spec: ModelSpec) -> int:
    """How much of a text is read: less of it with a larger model."""
    affordable = int(_MULTIPLY_ADDS / max(1, spec.shape.n_params))
    return max(_FEWEST_TOKENS, min(_MOST_TOKENS, affordable))


def count_vocab(spec: ModelSpec) -> int:
    """Tokens of the vocabulary, without those that only pad the embedding matrix."""
    tokens = spec.get("tokenizer.ggml.tokens", ())
    types = spec.get("tokenizer.ggml.token_type", ())
    if len(types) < len(tokens):
        return len(tokens)
    n = len(tokens)
    while n and types[n - 1] == _UNUSED and str(tokens[n - 1]).startswith("[PAD"):
        n -= 1
    return n


@contextmanager
def full_model(
    spec: ModelSpec, work: Path, threads: int | None, reporter: Reporter
) -> Iterator[Path]:
    """The unquantized model as a temporary GGUF; a GGUF source as it is, if it is read so."""
    if spec.source.kind == "gguf" and is_read_unchanged(spec):
        yield Path(spec.source.location)
        return
    work.mkdir(parents=True, exist_ok=True)
    path = work / "quality-source.gguf"
    reporter.stage("writing the F32 model that quality is measured against")
    write_many(spec, [(FULL, path)], threads=threads, progress=reporter.progress)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def is_read_unchanged(spec: ModelSpec) -> bool:
    """Whether a GGUF source is one file, nothing of which is left out or renamed."""
    if len(spec.source.files) != 1:
        return False
    header = read_header(Path(spec.source.location))
    same_name = header.text("general.name") == spec.get("general.name")
    return same_name and len(header.tensors) == len(spec.tensors)


def compute(
    spec: ModelSpec, engine: Engine, text: QualityText, window: int, key: str, progress: Progress
) -> None:
    """Evaluate a text and store its log-probabilities under `key`."""
    assert isinstance(engine, LogitsEngine)
    tokens, counts = text.tokens(engine)
    starts_with_bos = bool(text.content) and len(tokens) > engine.count(text.content)
    parts = list(divergence.windows(min(len(tokens), n_tokens_wanted(spec)), window))
    if not parts:
        raise UsageError(
            f"the quality text {text.name} has {len(tokens)} tokens; at least {window} are needed",
            next_step="give a longer text, or leave out --quality-text",
        )
    n_vocab = count_vocab(spec)
    positions = [
        [i for i in divergence.scored_positions(window) if counts[part.start + i + 1]]
        for part in parts
    ]
    n_scored = sum(map(len, positions))
    large = n_scored * n_vocab * 4 > _FLOAT32_BYTES
    folder = cache_directory() / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    shape, kind = (n_scored, n_vocab), np.float16 if large else np.float32
    read = list[int]()

    def blocks() -> Iterator[np.ndarray]:
        for i, part in enumerate(parts):
            piece = tokens[part]
            if starts_with_bos:
                piece[0] = tokens[0]  # every window begins as a text does
            logits = engine.logits(
                piece,
                # Of one of several equal parts.
                lambda part, whole, i=i: progress(  # type: ignore[misc]
                    round((i + part / max(1, whole)) * 1000), len(parts) * 1000
                ),
            )
            for start in range(0, len(positions[i]), divergence.ROWS):
                yield divergence.log_softmax(
                    logits[positions[i][start : start + divergence.ROWS]],
                    n_vocab,
                    divergence.SOURCE,
                )
            read.extend(piece)

    write_rows(folder / f"{key}.npy", shape, kind, blocks())
    info = engine.describe()
    about = describe_source(spec, info.quant, f"{info.name} {info.version}")
    record = {"about": about, "window": window, "n_vocab": n_vocab, "tokens": read}
    record["positions"] = positions
    with _disk_errors(folder):
        write_atomic(folder / f"{key}.json", json.dumps(record).encode())


def describe_source(spec: ModelSpec, kind: str, engine: str) -> dict[str, Any]:
    """What an artifact is compared with, for its card."""
    return {
        "kind": "source GGUF" if spec.source.kind == "gguf" else "source checkpoint",
        "type": kind,
        "engine": engine,
        "fingerprint": spec.source.fingerprint,
        **spec.source.provenance(),
    }


def write_rows(
    path: Path, shape: tuple[int, int], kind: type[np.floating[Any]], blocks: Iterable[np.ndarray]
) -> None:
    """Write an array block by block. It is never mapped for writing: a mapped page that finds no
    room on the disk ends the process. Raises DoesNotFitError when the disk is full.
    """
    with _disk_errors(path.parent), new_file(path) as file:
        header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        n_bytes = shape[0] * shape[1] * np.dtype(kind).itemsize
        if hasattr(os, "posix_fallocate") and n_bytes:  # take the room now, not after an hour
            file.flush()
            os.posix_fallocate(file.fileno(), file.tell(), n_bytes)
        for rows in blocks:
            file.write(np.ascontiguousarray(rows, dtype=kind).data)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise
        raise DoesNotFitError(
            f"no room in {folder} for the source's probabilities: {error.strerror}",
            next_step="free some space, set BOARDFIT_CACHE to a folder on another disk, or build "
            "with --no-quality",
        ) from None


def load(key: str, text: QualityText) -> QualityReference | None:
    """A stored reference; None where there is none, or a damaged one."""
    folder = cache_directory() / "quality"
    try:
        record = json.loads((folder / f"{key}.json").read_bytes())
        log_probs = np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        tokens, window = tuple(record["tokens"]), int(record["window"])
        positions = tuple(tuple(found) for found in record["positions"])
        if log_probs.shape != (sum(map(len, positions)), record["n_vocab"]):
            return None
        os.utime(folder / f"{key}.json")  # the newest are kept
        return QualityReference(
            text, tokens, window, positions, record["n_vocab"], log_probs, record["about"]
        )
    except Exception:  # a damaged file is made again
        return None


def prune(keep: Sequence[str]) -> None:
    """Remove the references that were not used for longest, until the rest fits the cache."""
    folder, total = cache_directory() / "quality", 0
    records = sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    for record in records:
        data = record.with_suffix(".npy")
        total += data.stat().st_size if data.exists() else 0
        if total > _CACHE_BYTES and record.stem not in keep:
            record.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
