"""Public models by every usual name."""

from __future__ import annotations

import pytest

from boardfit.device_profiles.models import find_model, known_models


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("qwen3:0.6b", "qwen3-0.6b"),
        ("Qwen/Qwen3-0.6B-GGUF", "qwen3-0.6b"),
        ("qwen3:4b-instruct-2507-q8_0", "qwen3-4b"),
        ("llama3.2:1b-instruct-q4_K_M", "llama-3.2-1b"),
        ("llama3.2", "llama-3.2-3b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("unsloth/Qwen3-1.7B-unsloth-bnb-4bit", "qwen3-1.7b"),
        ("gemma3:1b-it-qat", "gemma-3-1b"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-GGUF", "mistral-7b"),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", "smollm-360m"),
        ("phi3:mini", "phi-3.5-mini"),
        ("someone/else-7b", None),
        ("name", None),
        ("", None),
    ],
)
def test_usual_names(name: str, model: str | None) -> None:
    found = find_model(name)
    assert (found.name if found else None) == model


def test_every_name_and_repository_of_the_catalogue_is_found() -> None:
    for model in known_models().values():
        assert find_model(model.name) == model
        found = find_model(model.repo)
        assert found is not None, model.repo
        assert (found.layers, found.embd) == (model.layers, model.embd), model.repo
