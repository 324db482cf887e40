"""What is particular to LiteRT: its container, its CPU, its runtime's words, its weight cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.litert import library as litert_library
from boardfit.edge.engines.litert.container import METADATA, read_container
from boardfit.edge.engines.litert.engine import weight_cache
from boardfit.edge.engines.litert.runtime_errors import damaged, load_error
from boardfit.edge.engines.litert.tflite_check import check_tflite
from boardfit.edge.errors import (
    EdgeError,
    EngineError,
    InputError,
    UnsafeInputError,
    UnsupportedModelError,
    UsageError,
)
from boardfit.edge.types import GenerationConfig
from tests.edge.engines.conftest import opened
from tests.edge.engines.engine_models import Models, ModelShelf
from tests.edge.engines.tiny_gguf import BOS, IM_END

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine-litert")]

RPI4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"
RPI5 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32 atomics fphp asimddp\n"


@pytest.fixture(scope="module")
def litert(model_shelf: ModelShelf) -> Models:
    return model_shelf["litert"]


@pytest.fixture(scope="module")
def tflite(model_shelf: ModelShelf) -> Models:
    return model_shelf["tflite"]


# ---- the CPU ------------------------------------------------------------------------------------


def test_armv8_0_is_refused_before_the_library_is_loaded(
    litert: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    litert_library.check_cpu("aarch64", RPI5)
    litert_library.check_cpu("x86_64", RPI4)
    litert_library.check_cpu("aarch64", ""), "a Mac has no cpuinfo"
    with pytest.raises(EngineError, match="LSE") as caught:
        litert_library.check_cpu("aarch64", RPI4)
    assert "gguf" in (caught.value.next_step or "")

    def reached(_package: str) -> None:
        raise AssertionError("the library was loaded")

    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    real = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: RPI4 if str(self) == "/proc/cpuinfo" else real(self, *a, **k),
    )
    monkeypatch.setattr(litert_library, "load_library", reached)
    with pytest.raises(EngineError, match="atomics"):
        open_engine("litert", litert.random)


# ---- stopping -----------------------------------------------------------------------------------


def test_a_step_is_taken_only_if_no_node_of_it_is_too_long_to_be_stopped(litert: Models) -> None:
    """Two exported lengths, 8 and 64; the longer one's widest product would take 21 ms."""
    container = read_container(litert.random)
    n_nodes = check_tflite(container.path, container.model.offset, container.model.n_bytes).n_nodes
    assert n_nodes > 2
    with opened("litert", litert.random) as engine:
        decoder = engine._lease.get()  # type: ignore[attr-defined]
        for node_s, budget_s, taken in ((0.021, 0.040, 8), (0.019, 0.040, 64), (0.021, None, 64)):
            decoder.truncate(0)
            decoder.steps._seconds = {1: 10.0, 8: 1.0, 64: node_s * n_nodes}
            assert decoder.prefill([5] * 64, budget_s=budget_s)
            assert len(decoder.cached) == taken


# ---- the container ------------------------------------------------------------------------------


def test_what_the_container_says(litert: Models) -> None:
    found = read_container(litert.random)
    assert found.start == "<|bos|>" and IM_END in found.stop_ids
    assert "im_start" in (found.template or "") and found.max_tokens == 1024
    assert b'"BPE"' in (found.tokenizer_json() or b"")


def copy_of(path: Path, folder: Path, n_bytes: int | None = None) -> Path:
    target = folder / path.name
    target.write_bytes(path.read_bytes()[:n_bytes])
    return target


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(litert: Models, tmp_path: Path, share: float) -> None:
    size = litert.random.stat().st_size
    with pytest.raises(InputError):
        open_engine("litert", copy_of(litert.random, tmp_path, int(size * share)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    edits=st.lists(st.tuples(st.integers(8, 17000), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_an_edited_header_never_leads_outside(
    litert: Models, tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    path = tmp_path / "edited.litertlm"
    if not path.exists():
        shutil.copy(litert.random, path)
    header = read_container(litert.random)
    place = next(s for s in header.sections if s.kind == METADATA)
    with path.open("r+b") as file:
        original = []
        for at, value in edits:
            at = at % (header.header_bytes - 8) + 8 if at % 2 else place.offset + at % place.n_bytes
            file.seek(at)
            original.append((at, file.read(1)))
            file.seek(at)
            file.write(bytes([value]))
        file.flush()
        try:
            found = read_container(path)
        except InputError:
            pass
        else:
            size = path.stat().st_size
            assert all(0 <= s.offset <= s.offset + s.n_bytes <= size for s in found.sections)
        for at, byte in reversed(original):
            file.seek(at)
            file.write(byte)


def test_a_section_that_points_outside_is_unsafe(litert: Models, tmp_path: Path) -> None:
    path = copy_of(litert.random, tmp_path)
    data = bytearray(path.read_bytes())
    data[24:32] = (2**40).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(UnsafeInputError, match="header"):
        read_container(path)


def test_a_tokenizer_that_unpacks_to_gigabytes_is_refused(litert: Models, tmp_path: Path) -> None:
    path = copy_of(litert.random, tmp_path)
    place = next(s for s in read_container(path).sections if s.kind == 6)
    data = bytearray(path.read_bytes())
    data[place.offset : place.offset + 8] = (2**35).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(UnsafeInputError, match="tokenizer"):
        open_engine("litert", path)


def test_a_damaged_model_inside_is_refused(litert: Models, tmp_path: Path) -> None:
    path = copy_of(litert.random, tmp_path)
    model = read_container(path).model
    data = bytearray(path.read_bytes())
    data[model.offset + 8 : model.offset + 400] = b"\xee" * 392
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        open_engine("litert", path)


def test_an_error_while_a_model_opens_passes_the_weight_cache() -> None:
    with weight_cache(True, "mark", "engine", 1) as path:
        assert path is not None
        path.write_bytes(b"packed")
    with pytest.raises(OSError, match="card"), weight_cache(True, "mark", "engine", 1) as path:
        assert path is not None and path.read_bytes() == b"packed"
        raise OSError("the card fails")


# ---- refusals with figures ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["litert", "tflite"])
def test_a_context_beyond_the_exported_cache_names_both(
    model_shelf: ModelShelf, engine: str
) -> None:
    with pytest.raises(UsageError, match=r"2048.*1024"):
        opened(engine, model_shelf[engine].random, n_ctx=2048)


def test_a_tokenizer_of_another_model_is_refused(tflite: Models, tmp_path: Path) -> None:
    home = tmp_path / "m"
    shutil.copytree(tflite.random.parent, home)
    document = json.loads((home / "tokenizer.json").read_text())
    document["model"]["vocab"] |= {
        f"more {i}": len(document["model"]["vocab"]) + 9 + i for i in range(9)
    }
    (home / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match="belong"):
        open_engine("tflite", home / "model.tflite")


def test_a_plain_tflite_without_its_tokenizer_says_so(tflite: Models, tmp_path: Path) -> None:
    alone = shutil.copy(tflite.random, tmp_path / "model.tflite")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        open_engine("tflite", alone)


@pytest.mark.parametrize(
    ("said", "operator"),
    [
        ("ValueError: Op builtin_code out of range: 206. Are you using old", "STABLEHLO_COMPOSITE"),
        ("Op builtin_code out of range: 999.", "number 999"),
        ("Didn't find op for builtin opcode 'RELU_0_TO_1' version '1'.", "RELU_0_TO_1 version 1"),
        ("Encountered unresolved custom op: MyOp.", "custom operator MyOp"),
    ],
)
def test_an_operator_the_runtime_lacks_is_named_with_its_version(said: str, operator: str) -> None:
    error = load_error("m.tflite", "tflite-runtime 2.14.0", said, [])
    assert isinstance(error, UnsupportedModelError)
    assert operator in str(error) and "tflite-runtime 2.14.0" in str(error)
    other = load_error("m.tflite", "x 1", "no idea", [])
    assert isinstance(other, EngineError) and "no idea" in str(other)
    assert "damaged" in str(damaged("m", "x"))


# ---- running ------------------------------------------------------------------------------------


def test_a_stop_ends_a_step_that_is_running(litert: Models) -> None:
    """One step of 256 tokens takes far longer than the stop may: it is left in the middle."""
    engine = opened("litert", litert.heavy)
    prompt = [BOS] + [7] * 256
    config = GenerationConfig(max_tokens=1, ignore_eos=True)
    list(engine.stream(prompt, config))
    engine.reset()
    start = time.monotonic()
    list(engine.stream(prompt, config))
    whole_s = time.monotonic() - start
    due = 0.0

    def stop() -> bool:
        nonlocal due
        due = due or time.monotonic() + whole_s / 4
        return time.monotonic() >= due

    engine.reset()
    events = list(engine.stream([BOS] + [7] * 4000, config, stop))
    late_s = time.monotonic() - due
    assert events[-1].finish_reason == "aborted"
    assert late_s < max(0.25, whole_s / 2)
    engine.close()


def test_weights_are_packed_once_and_mapped_then(litert: Models) -> None:
    folder = cache_directory() / "xnnpack"
    opened("litert", litert.heavy, use_mmap=False).close()
    assert not folder.exists() or not list(folder.iterdir())
    opened("litert", litert.heavy).close()
    (cached,) = folder.iterdir()
    stamp = cached.stat().st_mtime_ns
    engine = opened("litert", litert.heavy)
    assert list(folder.iterdir()) == [cached] and cached.stat().st_mtime_ns == stamp
    assert str(cached) in Path("/proc/self/maps").read_text()
    engine.close()
    assert str(cached) not in Path("/proc/self/maps").read_text()


def test_nothing_is_printed_by_the_library(litert: Models) -> None:
    code = (
        "import sys; from pathlib import Path; from boardfit.edge.engines import open_engine;"
        "from boardfit.edge.types import GenerationConfig;"
        "engine = open_engine('litert', Path(sys.argv[1]));"
        "print(len(list(engine.stream([259, 5], GenerationConfig(max_tokens=3)))));"
        "list(engine.stream([259] + [7] * 500, GenerationConfig(), lambda: True));"
        "engine.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(litert.random)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ},
    )
    assert done.returncode == 0 and done.stderr == ""


def test_listing_and_opening_import_nothing_else(litert: Models) -> None:
    code = (
        "import sys, json; from pathlib import Path; from boardfit.edge.engines import open_engine;"
        "open_engine('litert', Path(sys.argv[1])).close();"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(litert.random)], capture_output=True, text=True, check=True
    )
    assert not {"litert_lm", "ai_edge_litert", "jinja2", "torch"} & set(eval(done.stdout))


def test_prefill_settings_are_honoured(litert: Models) -> None:
    engine = opened("litert", litert.random, n_ctx=600, prefill_chunk=8)
    assert engine.n_ctx == 600
    with pytest.raises(EdgeError, match="600"):
        engine.stream([5] * 600, GenerationConfig())
    engine.close()
    assert EngineSettings().n_ctx is None
