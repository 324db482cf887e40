"""Claims of a GGUF that would end the process in the native loader are refused before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.gguf_writer import GGUFValue, GGUFWriter

from boardfit.edge.engines.llama import engine as llama_engine
from boardfit.edge.engines.llama import ready
from boardfit.edge.engines.llama.checks import check_numbers, check_vocabulary
from boardfit.edge.engines.llama.estimate import estimate_bytes, least_bytes
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import DoesNotFitError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.types import Plan
from tests.edge.engines import tiny_gguf
from tests.edge.engines.tiny_gguf import attention_keys, finish, llama_tensors, start

KINDS = gguf.GGUFValueType
Change = Callable[[GGUFWriter], None]


def put(key: str, value: Any, kind: KINDS, item: KINDS | None = None) -> Change:
    def change(writer: GGUFWriter) -> None:
        writer.kv_data[0][key] = GGUFValue(value=value, type=kind, sub_type=item)

    return change


def number(key: str, value: float) -> Change:
    return put(f"llama.{key}", value, KINDS.FLOAT32 if isinstance(value, float) else KINDS.UINT32)


def tokens(change: Callable[[list[Any]], None], model: str = "gpt2") -> Change:
    def apply(writer: GGUFWriter) -> None:
        change(writer.kv_data[0]["tokenizer.ggml.tokens"].value)
        writer.kv_data[0]["tokenizer.ggml.model"].value = model

    return apply


def both(*changes: Change) -> Change:
    return lambda writer: [change(writer) for change in changes] and None


def make(path: Path, change: Change) -> Path:
    writer = start(path, "llama", n_ctx=1024, add_bos=True, template=None)
    attention_keys(writer, 128, 2, 128)
    change(writer)
    finish(writer, llama_tensors(np.random.default_rng(0), 128, 2, 128))
    return path


def check(path: Path) -> None:
    header = read_header(path)
    check_numbers(path, header)
    check_vocabulary(path, header)


def byte_tokens(n: int) -> Callable[[list[Any]], None]:
    def change(found: list[Any]) -> None:
        found[:n] = [f"<0x{i:02X}>" for i in range(n)]

    return change


EPS = "attention.layer_norm_rms_epsilon"
HOSTILE: dict[str, Change] = {
    "eps NaN": number(EPS, math.nan),
    "eps negative": number(EPS, -1e-5),
    "eps zero": number(EPS, 0.0),
    "eps infinite": number(EPS, math.inf),
    "another eps": number("attention.group_norm_epsilon", -1.0),
    "rope base NaN": number("rope.freq_base", math.nan),
    "rope base zero": number("rope.freq_base", 0.0),
    "logit scale infinite": number("logit_scale", -math.inf),
    "a NaN in an array": put("llama.xielu.eps", [0.5, math.nan], KINDS.ARRAY, KINDS.FLOAT32),
    "too many experts": both(number("expert_count", 5000), number("expert_used_count", 2)),
    "more experts used than there are": number("expert_used_count", 2),
    "experts, and none used": number("expert_count", 4),
    "expert groups": both(
        number("expert_count", 4), number("expert_used_count", 2), number("expert_group_count", 3)
    ),
    "groups without experts": number("expert_group_count", 1),
    "more predicting layers than layers": number("nextn_predict_layers", 9),
    "600 layers": number("block_count", 600),
    "a token twice": tokens(lambda t: t.__setitem__(5, t[6])),
    "a token twice as C reads it": tokens(lambda t: t.__setitem__(5, t[6] + "\0x")),
    "a token that is the name of an empty one": both(
        tokens(lambda t: t.__setitem__(5, "\0")), tokens(lambda t: t.__setitem__(6, "[EMPTY_5]"))
    ),
    "SentencePiece without byte tokens": tokens(lambda t: None, "llama"),
    "SentencePiece without the last byte token": tokens(byte_tokens(0xF4), "llama"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_claims_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(UnsafeInputError, match=r"model\.gguf"):
        check(make(tmp_path / "model.gguf", HOSTILE[case]))


@pytest.mark.parametrize(
    "change",
    [
        number("rope.freq_base", 1e6),
        both(number("expert_count", 8), number("expert_used_count", 2)),
        both(
            number("expert_count", 8), number("expert_used_count", 2),
            number("expert_group_count", 4), number("expert_group_used_count", 2),
        ),
        put("llama.rope.scaling.type", "yarn", KINDS.STRING),
        tokens(lambda t: t.__setitem__(5, "")),
        tokens(lambda t: t.__setitem__(5, "xyz\0y")),
        tokens(byte_tokens(0xF5), "llama"),
    ],
)  # fmt: skip
def test_what_the_library_takes_is_accepted(tmp_path: Path, change: Change) -> None:
    check(make(tmp_path / "model.gguf", change))


@pytest.mark.parametrize(
    "change",
    [put("llama.rope.scaling.type", "x", KINDS.STRING), tokens(lambda t: None, "t5")],
)
def test_unknown_kinds_are_unsupported(tmp_path: Path, change: Change) -> None:
    with pytest.raises(UnsupportedModelError):
        check(make(tmp_path / "model.gguf", change))


def test_a_bundles_model_is_looked_at_like_any_other(tmp_path: Path) -> None:
    path = make(tmp_path / "model.gguf", HOSTILE["a token twice as C reads it"])
    plan = Plan(
        engine="llama_cpp", recipe="f32", device="x", n_ctx=256, kv_type="f16", n_threads=1,
        n_batch=64, n_ubatch=64, use_mmap=True, repack=False, artifact_bytes=1,
        memory={"weights_mapped": 1}, budget_bytes=1,
    )  # fmt: skip
    with pytest.raises(UnsafeInputError, match="twice"):
        llama_engine.LlamaCppEngine.open(built_file(path), EngineSettings.to_use(plan))


def test_a_plan_that_promises_too_little_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf.random_llama(tmp_path / "model.gguf", n_ctx=12_000_000)
    monkeypatch.setattr(ready, "available_bytes", lambda: 1 << 30)
    settings = EngineSettings(n_ctx=12_000_000, need_bytes=1)
    with pytest.raises(DoesNotFitError, match="needs about"):
        llama_engine.LlamaCppEngine.open(built_file(path), settings)


@pytest.mark.parametrize("make_model", [tiny_gguf.random_llama, tiny_gguf.random_gemma3,
                                        tiny_gguf.random_mamba])  # fmt: skip
def test_the_least_is_less_than_the_estimate(tmp_path: Path, make_model: Any) -> None:
    path = make_model(tmp_path / "model.gguf")
    header, settings = read_header(path), EngineSettings()
    least = least_bytes(path, header, 512, settings)
    assert header.tensor_bytes <= least <= estimate_bytes(path, header, 512, settings)
