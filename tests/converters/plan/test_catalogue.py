"""Plans by name alone, offline: the shapes of public models ship with boardfit."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.plan.catalogue import open_to_plan
from boardfit.converters.plan.command import plan_command
from boardfit.converters.plan.compare import make_hollow_spec
from boardfit.converters.plan.options import PlanOptions
from boardfit.device_profiles.models import known_models
from boardfit.edge.errors import InputError


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("qwen3-0.6b", None),
        ("qwen3:0.6b", None),
        ("Qwen/Qwen3-0.6B", None),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", None),
        ("hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0", "q8_0"),
        ("Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf", "q8_0"),
        ("qwen3:0.6b-q4_K_M", "q4_k_m"),
    ],
)
def test_a_public_model_is_planned_by_name(name: str, recipe: str | None) -> None:
    planned = open_to_plan(name)
    assert planned.spec.name == "qwen3-0.6b"
    assert planned.note is not None and "nothing was downloaded" in planned.note
    assert planned.options(PlanOptions()).recipe == recipe
    assert planned.options(PlanOptions(recipe="q5_k_m")).recipe == "q5_k_m"


def test_the_command_says_what_it_planned_from() -> None:
    done = CliRunner().invoke(
        plan_command, ["llama3.2:1b", "-d", "raspberry-pi-5-8gb"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "meta-llama/Llama-3.2-1B" in done.stderr
    assert "llama-3.2-1b on Raspberry Pi 5, 8 GB" in done.stdout


def test_an_unknown_name_stays_an_error() -> None:
    for name in ("someone/unknown", "unknown:1b"):
        with pytest.raises(InputError):
            open_to_plan(name)


def test_a_broken_directory_is_no_reason_to_guess(tmp_path: Path) -> None:
    (tmp_path / "qwen3-0.6b").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        open_to_plan("qwen3-0.6b")


@pytest.mark.parametrize("name", sorted(known_models()))
def test_a_hollow_model_has_the_size_of_its_shape(name: str) -> None:
    model = known_models()[name]
    spec = make_hollow_spec(model)
    names = [tensor.name for tensor in spec.tensors]
    assert len(set(names)) == len(names)
    n_values = sum(tensor.n_elements for tensor in spec.tensors)
    assert n_values == pytest.approx(spec.shape.n_params, rel=0.002)
