"""Vectors of embedding models: one per text, of length one, nothing cut off in silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from boardfit.edge.engines import open_engine
from boardfit.edge.engines.llama import embedding, ready
from boardfit.edge.engines.llama.embedding import LlamaEmbedder
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import (
    DoesNotFitError,
    EngineError,
    InputError,
    UnsafeInputError,
    UnsupportedModelError,
)
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.gguf.purpose import is_embedder, require_embedder
from tests.edge.engines import tiny_gguf

pytestmark = pytest.mark.engine
LAST = gguf.PoolingType.LAST


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return tiny_gguf.random_bert(tmp_path / "encoder.gguf")


def opened(path: Path, **settings: int) -> closing[LlamaEmbedder]:
    return closing(LlamaEmbedder.open(built_file(path), EngineSettings(**settings)))  # type: ignore[arg-type]


@pytest.fixture
def embedder(encoder: Path) -> Iterator[LlamaEmbedder]:
    with opened(encoder) as embedder:
        yield embedder


def test_a_text_becomes_one_vector_of_length_one(embedder: LlamaEmbedder) -> None:
    vector, n_tokens = embedder.embed("hello")
    assert (len(vector), embedder.pooling) == (embedder.n_embd, "mean")
    assert n_tokens == len(embedder.tokenize("hello"))
    assert np.linalg.norm(vector) == pytest.approx(1)
    other, _ = embedder.embed("something else, and longer")
    again, _ = embedder.embed("hello")
    assert vector == again, "no text leaves anything behind for the next"
    assert abs(np.dot(vector, other)) < 0.999


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused(embedder: LlamaEmbedder, text: str) -> None:
    with pytest.raises(InputError, match="empty"):
        embedder.embed(text)


def test_a_text_longer_than_the_context_is_not_cut_off(embedder: LlamaEmbedder) -> None:
    with pytest.raises(InputError, match="reads 256 at most"):
        embedder.embed("x" * 300)
    assert embedder.embed("x" * 200)


def test_the_last_token_of_a_decoder_in_steps_is_that_in_one(tmp_path: Path) -> None:
    path = tiny_gguf.random_llama(tmp_path / "decoder.gguf", pooling=LAST)
    text = "a text of more than one step " * 5
    vectors = []
    for step in (16, 512):
        with opened(path, n_ubatch=step) as embedder:
            vectors.append(embedder.embed(text)[0])
    assert np.abs(np.subtract(*vectors)).max() < 1e-3


def test_only_embedding_models_have_vectors(tmp_path: Path) -> None:
    path = tiny_gguf.random_llama(tmp_path / "chat.gguf")
    with pytest.raises(UnsupportedModelError, match="is no embedding model"):
        LlamaEmbedder.open(built_file(path), EngineSettings())
    without = tiny_gguf.random_bert(tmp_path / "without.gguf", pooling=None)
    assert is_embedder(read_header(without))
    with pytest.raises(UnsupportedModelError, match="states no pooling"):
        require_embedder(read_header(without), without)


def test_an_embedding_model_generates_nothing(encoder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="an embedding model") as caught:
        open_engine("llama_cpp", built_file(encoder))
    assert "--embed TEXT" in str(caught.value.next_step)


def test_memory_is_checked_before_the_load(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "available_bytes", lambda: 1000)
    with pytest.raises(DoesNotFitError, match="needs about"):
        LlamaEmbedder.open(built_file(encoder), EngineSettings())


def test_a_vocabulary_is_checked_as_for_every_model(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoder.read_bytes()
    encoder.write_bytes(data.replace(b"<|im_end|>", b"<|pad|>\0\0\0", 1))
    with pytest.raises(UnsafeInputError, match="twice"):
        LlamaEmbedder.open(built_file(encoder), EngineSettings())


def test_what_the_library_aborts_for_is_refused(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EmbeddingGemma with fewer layers than one that sees the whole text."""
    header = read_header(encoder)
    found = {**header.kv, "general.architecture": "gemma-embedding",
             "gemma-embedding.pooling_type": 1, "gemma-embedding.block_count": 5}  # fmt: skip
    fake = type(header)(**{**vars(header), "kv": found})
    monkeypatch.setattr(embedding, "read_header", lambda path: fake)
    with pytest.raises(UnsupportedModelError, match="5 layers, none of which sees"):
        LlamaEmbedder.open(built_file(encoder), EngineSettings())


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_vector_without_direction_is_an_error(value: float) -> None:
    with pytest.raises(EngineError, match="length"):
        embedding.normalize([value, value], "model")
