"""What the engine `onnx` reads before native code does: the configuration can name libraries to
load and files to open, so only known keys pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.engines.onnx import library as onnx_library
from boardfit.edge.engines.onnx.check import check_folder
from boardfit.edge.engines.onnx.library import load_error
from boardfit.edge.errors import EngineError, InputError, UnsafeInputError, UnsupportedModelError
from tests.edge.files.wire import attribute, model, node, value_info

Edit = Callable[[dict[str, Any]], Any]


def config() -> dict[str, Any]:
    return {
        "model": {
            "type": "llama", "context_length": 512, "vocab_size": 300, "eos_token_id": [2, 0],
            "decoder": {
                "filename": "model.onnx", "num_hidden_layers": 2, "num_key_value_heads": 2,
                "head_size": 16, "session_options": {"provider_options": []},
            },
        },
        "search": {"max_length": 512},
    }  # fmt: skip


def folder(tmp_path: Path, edit: Edit | None = None) -> Path:
    document = config()
    if edit is not None:
        edit(document)
    (tmp_path / "genai_config.json").write_text(json.dumps(document))
    path = tmp_path / "model.onnx"
    nbits = [attribute("N", 64), attribute("K", 64), attribute("bits", 4)]
    path.write_bytes(
        model(
            node("MatMulNBits", "m", *nbits, domain="com.microsoft"),
            value_info(11, "past_key_values.0.key", 1, ["b", 2, "s", 16]),
            value_info(11, "past_key_values.0.value", 1, ["b", 2, "s", 16]),
        )
    )
    return path


def test_an_honest_folder(tmp_path: Path) -> None:
    found = check_folder(folder(tmp_path))
    assert (found.n_ctx, found.n_vocab, found.eog) == (512, 300, (2, 0))
    assert found.kv_bytes_per_token == 2 * 2 * 16 * 4 and found.quant == "int4 b32"
    assert found.can_rewind


def set_decoder(key: str, value: Any) -> Edit:
    return lambda document: document["model"]["decoder"].__setitem__(key, value)


@pytest.mark.parametrize(
    "edit",
    [
        set_decoder("session_options", {"custom_ops_library": "/tmp/evil.so"}),
        set_decoder("session_options", {"session.save_model_path": "x"}),
        set_decoder("run_options", {"x": "y"}),
        set_decoder("filename", "../other.onnx"),
        set_decoder("pipeline", []),
        lambda document: document["model"].__setitem__("vision", {"filename": "v.onnx"}),
        lambda document: document["model"].__setitem__("draft", {}),
        lambda document: document.__setitem__("engine", {}),
    ],
)
def test_keys_that_open_files_or_load_libraries_are_refused(tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(UnsafeInputError):
        check_folder(folder(tmp_path, edit))


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["model"].__setitem__("context_length", 0),
        lambda document: document["model"].__setitem__("context_length", True),
        lambda document: document["model"].__setitem__("vocab_size", 1 << 40),
        lambda document: document["model"].__setitem__("eos_token_id", [-1]),
        lambda document: document["model"].__setitem__("eos_token_id", ["2"]),
        lambda document: document.pop("model"),
        lambda document: document["model"].pop("decoder"),
        set_decoder("num_hidden_layers", None),
        set_decoder("session_options", []),
        set_decoder("session_options", {"provider_options": [{"cuda": {}}]}),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(InputError):
        check_folder(folder(tmp_path, edit))


def test_a_plain_network_is_no_language_model(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (tmp_path / "genai_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="no language model") as caught:
        check_folder(path)
    assert "edge bench" in str(caught.value.next_step)


def test_a_key_that_appears_twice_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path)
    text = json.dumps(config())
    (tmp_path / "genai_config.json").write_text(text[:-1] + ', "search": {}}')
    with pytest.raises(InputError, match="twice"):
        check_folder(path)


def test_a_missing_operator_is_named_with_the_version() -> None:
    error = load_error("m.onnx", "Fatal error: com.x.Swirl(-1) is not a registered function/op")
    assert isinstance(error, UnsupportedModelError)
    assert "com.x.Swirl" in str(error) and onnx_library.runtime_version() in str(error)
    assert type(load_error("m.onnx", "something else")) is EngineError
