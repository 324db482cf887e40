"""Real vocabularies: rebuilt files against upstream's vectors, our metadata against upstream's
converter, and the written vocabulary against the checkpoint, in the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.tokenizers.engine_vocab import open_vocab
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.loading import load_tokenizer
from boardfit.converters.tokenizers.reference import load_reference, sentence_piece
from boardfit.converters.tokenizers.verify import verify_vocabulary
from boardfit.converters.tokenizers.vocabulary import write_vocab_only
from boardfit.edge.errors import IntegrityError
from boardfit.edge.files.gguf import read_header
from tests.converters.tokenizers.conftest import Checkpoint
from tests.converters.tokenizers.flavours import FLAVOURS, is_equivalent
from tests.converters.tokenizers.gemma_fast import rebuild_gemma_fast
from tests.converters.tokenizers.rebuild import Rebuilt, read_vectors, vocab_path

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

Make = Callable[[str], tuple[Checkpoint, Rebuilt]]
DRIVER = Path(__file__).with_name("oracle_driver.py")
# Flavour → (GGUF architecture, Hugging Face class) where it is not Llama.
FAMILY = {
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
    "lfm2": ("lfm2", "Lfm2ForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen35": ("qwen2", "Qwen2ForCausalLM"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM"),
    "granite": ("granite", "GraniteForCausalLM"),
    "phi4-mini": ("phi3", "Phi3ForCausalLM"),
    "phi-3": ("phi3", "Phi3ForCausalLM"),
    "gemma": ("gemma2", "Gemma2ForCausalLM"),
    "gemma-4": ("gemma4", "Gemma4ForCausalLM"),
    "gpt-oss": ("gpt-oss", "GptOssForCausalLM"),
    "hunyuan": ("hunyuan-dense", "HunYuanDenseV1ForCausalLM"),
    "exaone4": ("exaone4", "Exaone4ForCausalLM"),
    "ernie4_5": ("ernie4_5", "Ernie4_5_ForCausalLM"),
}
# Flavours whose splitting is that of the vocabulary's own GGUF, so that its vectors apply.
OWN_PATTERN = [
    "llama-bpe", "smollm3", "lfm2", "qwen2", "qwen35", "gpt-2", "starcoder", "refact", "granite",
    "smollm", "deepseek-llm", "deepseek-coder", "falcon", "llama-spm", "llama-hf", "phi-3",
    "gemma-4",
]  # fmt: skip
# `llama-hf` is left out: upstream writes -1000 for every score, and the engine then splits
# differently than the checkpoint; `test_scores_of_a_fast_llama_tokenizer` shows both.
# Command-R's 256,000 tokens take a minute and show nothing that others do not.
# Falcon-H1 splits as LFM2 does. These families compare whole files.
WHOLE = {"gpt-oss", "exaone4", "ernie4_5", "hunyuan"}
COMPARED = sorted(set(FLAVOURS) - {"llama-hf", "command-r", "falcon-h1", *WHOLE})


def family(flavour: str) -> tuple[str, str]:
    return FAMILY.get(flavour, ("llama", "LlamaForCausalLM"))


@pytest.mark.parametrize("flavour", OWN_PATTERN)
def test_rebuilt_files_pass_upstream_s_vectors(
    flavour: str, rebuilt: Make, llama_cpp_tree: Path
) -> None:
    checkpoint, _ = rebuilt(flavour)
    # Upstream's are the engine's, which does not bring text into Unicode form NFC.
    vectors = [
        (text, ids)
        for text, ids in read_vectors(vocab_path(llama_cpp_tree, flavour))
        if unicodedata.normalize("NFC", text) == text
    ]
    assert len(vectors) >= 45
    files = TokenizerFiles(checkpoint.directory, checkpoint.config)
    encode = load_reference(files).encode
    assert [(text, encode(text)) for text, _ in vectors] == vectors
    if files.sentencepiece_model is not None:
        processor = sentence_piece(files)
        assert [(text, processor.EncodeAsIds(text)) for text, _ in vectors] == vectors


@pytest.mark.engine
@pytest.mark.parametrize("flavour", sorted({*COMPARED, "llama-hf", *WHOLE}))
def test_engine_splits_as_the_checkpoint(flavour: str, rebuilt: Make, tmp_path: Path) -> None:
    checkpoint, result = rebuilt(flavour)
    arch, _ = family(flavour)
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config, arch)
    assert tokenizer.n_tokens == result.n_vocab
    path = tmp_path / "vocab.gguf"
    name = "Phi-3-mini" if flavour == "phi-3" else "model"
    write_vocab_only(tokenizer, arch, path, name=name)
    report = verify_vocabulary(path, checkpoint.directory, checkpoint.config)
    assert report.n_texts > 430
    assert result.eos_id in report.eog_ids
    assert is_equivalent(report.pre, FLAVOURS[flavour].pre)
    limited = {
        "qwen2": 1,
        "qwen35": 1,
        "deepseek-llm": 1,
        "phi4-mini": 1,
        "tekken": 1,
        "gemma-4": 1,
        "gpt-oss": 1,
    }
    assert len(report.limits) == limited.get(flavour, 0), report.limits
    if FLAVOURS[flavour].template is not None:
        assert report.turn_end is not None


@pytest.fixture(scope="module")
def upstream(
    rebuilt: Make,
    tmp_path_factory: pytest.TempPathFactory,
    llama_cpp_tree: Path,
    oracle_python: Path,
) -> tuple[dict[str, Path], dict[str, str | None]]:
    """Every flavour through upstream's converter: its file, and the name its hash table gave."""
    folder = tmp_path_factory.mktemp("upstream")
    jobs, files = [], {}
    for flavour in [*COMPARED, "llama-hf"]:
        checkpoint, result = rebuilt(flavour)
        arch, cls = family(flavour)
        # What upstream's constructor wants besides the vocabulary.
        shape = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2}
        config = {"architectures": [cls], "model_type": arch, **shape, **checkpoint.config}
        if result.bos_id is not None:
            config["bos_token_id"] = result.bos_id
        checkpoint.config.update(config)
        checkpoint.write("config.json", config)
        files[flavour] = folder / f"{flavour}.gguf"
        jobs.append(
            {
                "model": str(checkpoint.directory),
                "outfile": str(files[flavour]),
                "pre": FLAVOURS[flavour].pre,
            }
        )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_LOCAL_GGUF", None)
    done = subprocess.run(
        [str(oracle_python), str(DRIVER), str(llama_cpp_tree)],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    recognised = json.loads(done.stdout.strip().splitlines()[-1])
    names = {f: recognised.get(str(rebuilt(f)[0].directory)) for f in files}
    return files, names


def entries_of(path: Path) -> list[tuple[str, tuple[int | None, ...], Any]]:
    header = read_header(path, arrays="full")
    return [
        (key, tuple(None if t is None else int(t) for t in header.kv_types[key]), value)
        for key, value in header.kv.items()
        if key.startswith("tokenizer.")
    ]


@pytest.mark.parametrize("flavour", COMPARED)
def test_metadata_equals_upstream_s(
    flavour: str,
    rebuilt: Make,
    upstream: tuple[dict[str, Path], dict[str, str | None]],
    tmp_path: Path,
) -> None:
    """Keys, order, types and values; names of pre-tokenizers that split alike are the same."""
    checkpoint, _ = rebuilt(flavour)
    arch, _ = family(flavour)
    path = tmp_path / "vocab.gguf"
    write_vocab_only(load_tokenizer(checkpoint.directory, checkpoint.config, arch), arch, path)
    ours, theirs = entries_of(path), entries_of(upstream[0][flavour])
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    for (key, _, mine), (_, _, other) in zip(ours, theirs, strict=True):
        if key == "tokenizer.ggml.pre":
            # Over a stand-in's vocabulary, upstream's hash of one text is that of another pattern.
            expected = {"qwen35": "qwen2", "minicpm5": "smaug-bpe"}.get(mine, mine)
            assert is_equivalent(expected, other), (mine, other)
        elif isinstance(mine, list):
            assert [(i, a, b) for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b][
                :5
            ] == [], key
        else:
            assert mine == other, key


@pytest.mark.parametrize("flavour", [f for f in COMPARED if FLAVOURS[f].upstream_pre])
def test_upstream_recognises_the_rebuilt_vocabulary(
    flavour: str, upstream: tuple[dict[str, Path], dict[str, str | None]]
) -> None:
    assert upstream[1][flavour] == FLAVOURS[flavour].upstream_pre


def test_upstream_refuses_what_it_has_not_seen(
    upstream: tuple[dict[str, Path], dict[str, str | None]],
) -> None:
    """These stand-ins for families' own vocabularies are unknown to its hash table; ours are
    recognised by pattern (`test_engine_splits_as_the_checkpoint`).
    """
    assert {f for f in ("olmo2", "phi4-mini", "tekken") if upstream[1][f] is None} == {
        "olmo2",
        "phi4-mini",
        "tekken",
    }


@pytest.mark.engine
def test_scores_of_a_fast_llama_tokenizer(
    rebuilt: Make, upstream: tuple[dict[str, Path], dict[str, str | None]], tmp_path: Path
) -> None:
    """From tokenizer.json alone we recover tokenizer.model's scores; upstream's equal ones split
    words otherwise, and verification refuses its file.
    """
    alone, _ = rebuilt("llama-hf")
    both, _ = rebuilt("llama-spm")
    mine = {
        e.key: e.value for e in load_tokenizer(alone.directory, alone.config, "llama").metadata()
    }
    true = {e.key: e.value for e in load_tokenizer(both.directory, both.config, "llama").metadata()}
    texts = true["tokenizer.ggml.tokens"]
    words = [i for i, text in enumerate(texts) if i >= 259 and len(text) > 1]

    def ranked(scores: list[float]) -> list[int]:
        return sorted((i for i in words), key=lambda i: -scores[i])

    assert ranked(mine["tokenizer.ggml.scores"]) == ranked(true["tokenizer.ggml.scores"])
    with pytest.raises(IntegrityError, match="splits text differently"):
        verify_vocabulary(upstream[0]["llama-hf"], alone.directory, alone.config)


@pytest.mark.engine
def test_gemma_from_tokenizer_json_alone(llama_cpp_tree: Path, tmp_path: Path) -> None:
    """Gemma's real 262,144 tokens and 514,906 merges, without tokenizer.model: upstream's hash
    table does not know it, scores recovered from the merges give the same ids everywhere.
    """
    source = llama_cpp_tree / "models" / "ggml-vocab-gemma-4.gguf"
    result = rebuild_gemma_fast(source, tmp_path)
    config = {"vocab_size": result.n_vocab, "eos_token_id": result.eos_id}
    encode = load_reference(TokenizerFiles(tmp_path, config)).encode
    vectors = read_vectors(source)
    assert [(text, encode(text)) for text, _ in vectors] == vectors
    path = tmp_path / "vocab.gguf"
    write_vocab_only(load_tokenizer(tmp_path, config, "gemma3"), "gemma3", path)
    report = verify_vocabulary(path, tmp_path, config)
    assert report.n_tokens == 262_144
    assert report.limits == ()


@pytest.mark.engine
def test_name_decides_whether_phi_3_strips_spaces(rebuilt: Make, tmp_path: Path) -> None:
    checkpoint, _ = rebuilt("phi-3")
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config, "phi3")
    path = tmp_path / "vocab.gguf"
    write_vocab_only(tokenizer, "phi3", path, name="my-fine-tune")
    report = verify_vocabulary(path, checkpoint.directory, checkpoint.config)
    assert len(report.limits) == 1
    assert "phi-3" in report.limits[0]


@pytest.mark.engine
def test_wrong_pattern_on_a_real_vocabulary(
    rebuilt: Make, upstream: tuple[dict[str, Path], dict[str, str | None]]
) -> None:
    """Llama 3's vocabulary written as tekken's: the first differing text is shown."""
    checkpoint, _ = rebuilt("llama-bpe")
    with pytest.raises(IntegrityError, match="text '") as caught:
        verify_vocabulary(upstream[0]["smollm3"], checkpoint.directory, checkpoint.config)
    assert "the engine gives" in str(caught.value)


@pytest.mark.engine
def test_full_files_of_upstream_load_too(llama_cpp_tree: Path) -> None:
    """Vocab-only loading is the same for files that come with every key of a model."""
    path = llama_cpp_tree / "models" / "ggml-vocab-qwen2.gguf"
    with open_vocab(path) as engine:
        vectors = read_vectors(path)
        assert [(text, engine.encode(text)) for text, _ in vectors] == vectors
