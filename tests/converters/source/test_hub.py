"""Downloads from a hub, against a real server on the loopback."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.plan.catalogue import open_to_plan
from boardfit.converters.source.hub import RemoteFile, choose_files, download_heads, read_start
from boardfit.converters.source.resolve import open_model
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import (
    DoesNotFitError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UnsupportedModelError,
)
from tests.converters.source.hub_server import COMMIT, REPOSITORY, Hub, serve

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x04 never fetched")
    (checkpoint / "original").mkdir()
    (checkpoint / "original" / "params.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(Hub(checkpoint)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_no_test_before_has_put_the_library_offline() -> None:
    from huggingface_hub import constants

    assert not constants.HF_HUB_OFFLINE, "it was imported while a test had HF_HUB_OFFLINE set"


def fetched(hub: Hub) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in hub.requests if "/resolve/" in path]


def test_repository_becomes_a_spec(hub: Hub) -> None:
    seen: list[tuple[int, int]] = []
    spec = open_model(REPOSITORY, progress=lambda done, total: seen.append((done, total)))
    assert spec.source.kind == "hub"
    assert (spec.source.location, spec.source.revision) == (REPOSITORY, COMMIT)
    assert spec.source.license == "mit"
    assert spec.name == "Tiny Model"
    assert {hub.tokens[path] for path, _ in hub.requests if REPOSITORY in path} == {
        "Bearer hf_secret"
    }
    total = sum(spec.source.files.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_a_token_stays_with_the_hub_when_a_file_lies_elsewhere(hub: Hub, checkpoint: Path) -> None:
    with serve(Hub(checkpoint)) as store:
        hub.elsewhere = store.url
        assert open_model(REPOSITORY).source.files
        assert any(path.endswith(SHARD) for path, _ in store.requests)
        assert set(store.tokens.values()) == {None}, "another port is another origin"
        assert {token for path, token in hub.tokens.items() if "/resolve/" in path} == {
            "Bearer hf_secret"
        }


def test_only_what_a_conversion_needs_is_fetched(hub: Hub) -> None:
    open_model(REPOSITORY)
    assert "pytorch_model.bin" not in fetched(hub)
    assert "params.json" not in fetched(hub)
    assert SHARD in fetched(hub)


def test_second_time_needs_no_download_and_no_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_model(REPOSITORY)
    hub.requests.clear()
    assert open_model(REPOSITORY).source == first.source
    assert fetched(hub) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_model(REPOSITORY).source == first.source


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub writes 10 MiB at a time, more than a test's whole checkpoint."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)


@pytest.mark.usefixtures("small_chunks")
def test_a_line_that_breaks_is_continued(hub: Hub) -> None:
    hub.cut_at[SHARD] = [1000, 500]
    spec = open_model(REPOSITORY)
    ranges = [r for path, r in hub.requests if path.endswith(SHARD)]
    assert ranges == [None, "bytes=1000-", "bytes=1500-"]
    assert spec.tensors[0].read(0, 1).size


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_download_continues_where_it_ended(hub: Hub) -> None:
    def kill(done: int, total: int) -> None:
        if done > total * 3 // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_model(REPOSITORY, progress=kill)
    before = fetched(hub)
    hub.requests.clear()
    open_model(REPOSITORY)
    again = [(path, r) for path, r in hub.requests if path.rpartition("/")[2] in before]
    assert len(again) == 1, "only the interrupted file is asked for a second time"
    assert again[0][1] is not None, "and only the rest of it"


def test_an_unfinished_file_continues_in_the_next_run(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boardfit.edge.disk.verified import cache_directory

    part = cache_directory() / "hub" / REPOSITORY.replace("/", "--") / COMMIT / f"{SHARD}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((hub.directory / SHARD).read_bytes()[:4096])
    open_model(REPOSITORY)
    assert [r for path, r in hub.requests if path.endswith(SHARD)] == ["bytes=4096-"]


def test_a_damaged_file_is_refused_and_removed(hub: Hub) -> None:
    hub.flip = SHARD
    with pytest.raises(IntegrityError, match=SHARD):
        open_model(REPOSITORY)
    hub.flip = None
    assert open_model(REPOSITORY).tensors


def test_offline_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(InputError, match="cannot be reached") as caught:
        open_model(REPOSITORY)
    assert "\n" not in str(caught.value)
    assert "--local-dir" in str(caught.value.next_step)
    assert caught.value.exit_code == 3


def test_gated_unknown_and_wrong_revision(hub: Hub) -> None:
    with pytest.raises(InputError, match="no such directory here, and no such repository"):
        open_model("someone/else")
    with pytest.raises(InputError, match="no revision 'v9'"):
        open_model(f"{REPOSITORY}@v9")
    hub.gated = True
    with pytest.raises(InputError, match="on request only"):
        open_model(REPOSITORY)


def test_disk_is_checked_before_the_first_byte(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("boardfit.converters.source.hub.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFitError) as caught:
        open_model(REPOSITORY)
    assert caught.value.shortfall_bytes and caught.value.shortfall_bytes > 0
    assert fetched(hub) == []


def files(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, 10, None) for name in names]


def test_repositories_without_safetensors_say_what_they_hold() -> None:
    with pytest.raises(InputError, match=r"GGUF files \(m-Q4_0.gguf\)"):
        choose_files("a/b", files("m-Q4_0.gguf", "README.md"))
    with pytest.raises(UnsafeInputError, match="pickles"):
        choose_files("a/b", files("pytorch_model.bin", "config.json"))
    with pytest.raises(UnsupportedModelError, match="adapter"):
        choose_files("a/b", files("adapter_config.json", "adapter_model.safetensors"))
    with pytest.raises(InputError, match="no safetensors"):
        choose_files("a/b", files("config.json"))


def test_file_names_from_the_hub_cannot_leave_the_directory() -> None:
    hostile = files("../../etc/passwd.json", "/abs.json", ".hidden.json", "model.safetensors")
    assert [file.name for file in choose_files("a/b", hostile)] == ["model.safetensors"]


def test_a_file_ends_at_the_size_that_was_announced(hub: Hub) -> None:
    hub.endless = SHARD
    with pytest.raises(UnsafeInputError, match="sends more of model-00002"):
        open_model(REPOSITORY)
    assert not list(cache_directory().rglob("*.part"))


def test_a_file_that_drips_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boardfit.converters.source.hub._STALL_S", 0.5)
    hub.drip = SHARD
    with pytest.raises(InputError, match="broke off"):
        open_model(REPOSITORY)


@pytest.mark.parametrize(
    "change",
    [{"size": "7"}, {"size": -1}, {"size": 10**40}, {"size": True}, {"rfilename": 5},
     {"lfs": {"sha256": "$(x)", "size": 1, "pointerSize": 1}}, {"lfs": 5}],
)  # fmt: skip
def test_a_listing_of_other_types_is_refused(hub: Hub, change: dict[str, Any]) -> None:
    hub.change = change
    with pytest.raises(InputError) as caught:
        open_model(REPOSITORY)
    assert str(caught.value).isprintable()


# ---- for a plan ---------------------------------------------------------------------------------


def weights_sent(hub: Hub) -> int:
    """How many bytes of weights were asked for."""
    spans = [r for path, r in hub.requests if path.endswith((".safetensors", ".gguf"))]
    assert all(spans), "a request without a range is one for the whole file"
    ends = [span.removeprefix("bytes=").split("-") for span in spans if span]
    return sum(int(last) - int(first) + 1 for first, last in ends)


def test_a_plan_fetches_headers_and_no_weights(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first range is made shorter than the headers, as they are in large checkpoints."""
    monkeypatch.setattr("boardfit.converters.source.hub._HEAD_BYTES", 64)
    heads = open_to_plan(REPOSITORY).spec
    shards = [path for path in checkpoint.glob("*.safetensors") if path.name.startswith("model")]
    headers = [struct.unpack("<Q", path.read_bytes()[:8])[0] + 8 for path in shards]
    assert weights_sent(hub) <= 6 * sum(headers)
    assert all(path.stat().st_size > n for path, n in zip(shards, headers, strict=True))
    hub.requests.clear()
    assert open_model(REPOSITORY, heads_only=True).tensors and not fetched(hub)
    whole = open_model(REPOSITORY)
    assert sorted(fetched(hub)) == sorted(whole.source.files), "a build fetches the weights"
    assert [(t.name, t.shape, t.source_type) for t in heads.tensors] == [
        (t.name, t.shape, t.source_type) for t in whole.tensors
    ]
    assert (heads.metadata, heads.source.files) == (whole.metadata, whole.source.files)
    assert heads.source.fingerprint != whole.source.fingerprint
    hub.requests.clear()
    assert open_model(REPOSITORY, heads_only=True).source == whole.source and not fetched(hub)


def test_a_header_from_a_server_without_ranges(hub: Hub) -> None:
    hub.knows_ranges = False
    spec = open_model(REPOSITORY, heads_only=True)
    assert len(spec.tensors) == len(open_model(REPOSITORY).tensors)


def test_a_token_stays_with_the_hub_when_a_header_lies_elsewhere(
    hub: Hub, checkpoint: Path
) -> None:
    with serve(Hub(checkpoint)) as store:
        hub.elsewhere = store.url
        open_model(REPOSITORY, heads_only=True)
        assert store.tokens and set(store.tokens.values()) == {None}


def test_a_file_without_a_header_is_refused_by_a_plan(hub: Hub, checkpoint: Path) -> None:
    (checkpoint / SHARD).write_bytes(b"<!DOCTYPE html>" + bytes(3000))
    with pytest.raises(InputError, match=SHARD):
        open_model(REPOSITORY, heads_only=True)


def test_a_file_of_no_possible_size_is_refused_by_a_plan(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UnsafeInputError, match="a size of "):
        download_heads(REPOSITORY, COMMIT, [RemoteFile(SHARD, 4 << 50, None)], tmp_path)


def test_a_list_without_end_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boardfit.converters.source.hub._MAX_LISTING_BYTES", 1000)
    hub.change["rfilename"] = "x" * 2000
    with pytest.raises(UnsafeInputError, match="no list of a repository: it has more than"):
        open_model(REPOSITORY)


def test_answers_come_through_requests_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 0.36, huggingface_hub speaks through requests, whose sessions stream by a flag."""
    import huggingface_hub.utils

    class Answer(contextlib.nullcontext[Any]):
        def iter_content(self, n_bytes: int) -> Iterator[bytes]:
            yield from (b"abcd", b"efgh")

    class Session:
        stream = False

        def get(self, url: str, **options: Any) -> Answer:
            assert options["stream"] and options["headers"]["Range"] == "bytes=0-4"
            answer = Answer()
            answer.enter_result = answer
            return answer

    seen: list[bytes] = []
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    monkeypatch.setattr(
        huggingface_hub.utils, "hf_raise_for_status", lambda answer: seen.append(answer._content)
    )
    assert read_start("http://hub/file", 5, {"Range": "bytes=0-4"}, None) == b"abcde"
    assert seen == [b"abcdefgh"]


def test_the_modules_of_an_embedding_model_are_fetched_too() -> None:
    names = ("config.json", "modules.json", "model.safetensors", "1_Pooling/config.json",
             "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "onnx/model.onnx",
             "../1_Pooling/config.json")  # fmt: skip
    found = choose_files("a/b", [RemoteFile(name, 1, None) for name in names])
    assert {file.name for file in found} == set(names[:5])
