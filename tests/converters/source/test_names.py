"""Names of models as people write and paste them."""

from __future__ import annotations

import pytest

from boardfit.converters.source.hub import HubName
from boardfit.converters.source.resolve import parse_name
from boardfit.edge.errors import InputError

RESOLVE = "https://huggingface.co/o/n/resolve/main/sub/x-Q4_K_M.gguf?download=true"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("o/n", HubName("o/n")),
        ("o/n@v1.0", HubName("o/n", "v1.0")),
        ("o/n:Q4_K_M", HubName("o/n", quant="Q4_K_M")),
        ("hf.co/o/n:Q4_K_M", HubName("o/n", quant="Q4_K_M")),
        ("https://hf.co/o/n:IQ4_XS", HubName("o/n", quant="IQ4_XS")),
        ("huggingface.co/o/n", HubName("o/n")),
        ("hf://o/n", HubName("o/n")),
        ("https://huggingface.co/o/n/", HubName("o/n")),
        ("https://huggingface.co/o/n/tree/main", HubName("o/n")),
        ("https://huggingface.co/o/n/tree/refs%2Fpr%2F3", HubName("o/n", "refs/pr/3")),
        ("https://huggingface.co/o/n?library=transformers", HubName("o/n")),
        (RESOLVE, HubName("o/n", file="sub/x-Q4_K_M.gguf")),
        ("https://huggingface.co/o/n/blob/v2/x.gguf", HubName("o/n", "v2", "x.gguf")),
        ("https://huggingface.co/o/n/resolve/main/model.safetensors", HubName("o/n")),
        ("o/n/x.gguf", HubName("o/n", file="x.gguf")),
        ("o/n/sub/x.gguf", HubName("o/n", file="sub/x.gguf")),
        ("qwen3:0.6b", "qwen3:0.6b"),
        ("library/qwen3:0.6b", "qwen3:0.6b"),
        ("https://ollama.com/library/qwen3:0.6b", "qwen3:0.6b"),
        ("ollama.com/library/llama3.2", "llama3.2"),
        ("qwen3-0.6b", "qwen3-0.6b"),
        ("a/b.gguf", None),
        ("a/b.bin", None),
        ("a/b/c", None),
        ("a b", None),
        ("", None),
    ],
)
def test_what_is_named(text: str, name: HubName | str | None) -> None:
    assert parse_name(text) == name


def test_a_mirror_is_known_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    assert parse_name("https://hub.invalid/o/n/tree/main") == HubName("o/n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://example.com/x.gguf", "a Hugging Face hub only"),
        ("https://huggingface.co/datasets/o/n", "not of a model"),
        ("https://huggingface.co/o", "not the address of a model"),
    ],
)
def test_addresses_of_something_else(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_name(text)
    assert caught.value.next_step
