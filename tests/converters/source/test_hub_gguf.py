"""One GGUF out of a repository of several, and what is said where it cannot be had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from boardfit.converters.source.hub import RemoteFile
from boardfit.converters.source.hub_gguf import choose_gguf
from boardfit.converters.source.resolve import HubName, open_model
from boardfit.edge.errors import InputError
from tests.converters.source.hub_server import REPOSITORY, Hub, serve
from tests.edge.engines import tiny_gguf

NAMES = (
    "tiny-Q4_K_M.gguf",
    "tiny-Q4_K_S.gguf",
    "mmproj-tiny-Q8_0.gguf",
    "Q8_0/tiny-Q8_0-00001-of-00002.gguf",
    "Q8_0/tiny-Q8_0-00002-of-00002.gguf",
    "../tiny-F16.gguf",
)
FILES = [RemoteFile(name, 1, None) for name in NAMES]


def chosen(quant: str | None = None, file: str | None = None) -> list[str]:
    return [f.name for f in choose_gguf(HubName("o/n", file=file, quant=quant), FILES)]


def test_a_quant_is_a_whole_word_and_all_parts_come() -> None:
    assert chosen("q4_k_m") == ["tiny-Q4_K_M.gguf"]
    assert chosen("Q8_0") == list(NAMES[3:5])
    assert chosen(file="tiny-Q8_0-00002-of-00002.gguf") == list(NAMES[3:5])


@pytest.mark.parametrize(
    ("quant", "file"), [("Q4_K", None), ("F16", None), (None, "x.gguf"), (None, "tiny-F16.gguf")]
)
def test_what_is_not_there_is_answered_with_what_is(quant: str | None, file: str | None) -> None:
    with pytest.raises(InputError, match="no file is") as caught:
        chosen(quant, file)
    assert "tiny-Q4_K_M.gguf" in str(caught.value.next_step)
    assert "mmproj" not in str(caught.value.next_step)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "served"
    (folder / "sub").mkdir(parents=True)
    tiny_gguf.random_llama(folder / "sub/tiny-F16.gguf")
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serve(Hub(folder)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.mark.parametrize("ending", [":f16", "/sub/tiny-F16.gguf", "/tiny-F16.gguf"])
def test_a_named_gguf_is_fetched_and_kept(
    hub: Hub, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = open_model(REPOSITORY + ending)
    assert spec.source.kind == "gguf" and spec.source.location.endswith("sub/tiny-F16.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_model(REPOSITORY + ending).source == spec.source


def test_a_plan_fetches_the_header_of_a_gguf(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boardfit.converters.source.hub._HEAD_BYTES", 64)
    heads = open_model(REPOSITORY + ":f16", heads_only=True)
    spans = [span for path, span in hub.requests if path.endswith(".gguf")]
    assert spans[0] == "bytes=0-63" and all(spans)
    whole = open_model(REPOSITORY + ":f16")
    assert hub.requests[-1][1] is None
    assert (heads.metadata, heads.shape) == (whole.metadata, whole.shape)


def test_an_address_pasted_from_the_hub_is_fetched(hub: Hub) -> None:
    assert open_model(f"{hub.url}/{REPOSITORY}/resolve/main/sub/tiny-F16.gguf").source.files


def test_offline_the_way_out_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="Q4_K_M is not here") as caught:
        open_model("hf.co/someone/other:Q4_K_M")
    assert "hf download someone/other --include '*Q4_K_M*.gguf'" in str(caught.value.next_step)


def test_a_socks_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx imports the package for SOCKS when a client is made, wherever that happens."""
    import huggingface_hub.utils

    def refuse(*args: object, **options: object) -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.utils, "get_session", refuse)
    with pytest.raises(InputError, match=r"proxy \(ALL_PROXY") as caught:
        open_model("someone/other")
    assert "socksio" in str(caught.value.next_step)


@pytest.mark.parametrize("indexed", [False, True])
def test_half_a_cache_is_called_so(
    indexed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c" * 40
    repository = tmp_path / "hub/models--someone--other"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    missing = "model.safetensors"
    if indexed:
        missing = "model-00002-of-00002.safetensors"
        here = "model-00001-of-00002.safetensors"
        (snapshot / here).write_bytes(b"")
        index = {"weight_map": {"a": here, "b": missing}}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="cache is incomplete") as caught:
        open_model("someone/other")
    assert missing in str(caught.value)
    assert "go online once" in str(caught.value.next_step)


def test_a_name_of_the_catalogue_is_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("qwen3:0.6b", "qwen3-0.6b", "https://huggingface.co/Qwen/Qwen3-0.6B"):
        with pytest.raises(InputError, match=r"Qwen/Qwen3-0\.6B") as caught:
            open_model(name)
        assert "hf download Qwen/Qwen3-0.6B" in str(caught.value.next_step)
