"""The folder of states: keys, eviction, what is hostile in it, who else uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.engines.kv_state import MAGIC, mapped_state
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UsageError
from boardfit.edge.states.place import VARIABLE, beside_bundle, limit_bytes, user_folder
from boardfit.edge.states.store import (
    StateStore,
    check_owner,
    clear,
    entries,
    evict,
    file_label,
    sweep,
)
from tests.edge.states.block_engine import N_CTX, BlockEngine, state_of

ROOT = Path(__file__).parents[3]
TOKENS = list(range(100, 200))
IDENTITY = {"model": "block", "build": "1"}


def stored(folder: Path, tokens: Sequence[int] = TOKENS, **changes: Any) -> Path:
    """A state in a folder, as an earlier run left it."""
    engine = BlockEngine()
    engine.cached = list(tokens)
    path = store(folder, **changes).save(engine, tokens)  # type: ignore[arg-type]
    assert path is not None
    return path


def store(folder: Path, **changes: Any) -> StateStore:
    return StateStore(folder, "block", {}, **changes)


def restored(folder: Path, tokens: Sequence[int], engine: BlockEngine | None = None) -> Any:
    return store(folder).restore(engine or BlockEngine(), tokens)  # type: ignore[arg-type]


# ---- keys ---------------------------------------------------------------------------------------

_KEYS = st.tuples(
    st.sampled_from(["m", "other", "m-1", "m/..", "模型"]),
    st.fixed_dictionaries(
        {"model": st.sampled_from("ab"), "build": st.sampled_from("12"), "n_ctx": st.integers(1, 2)}
    ),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=3),
)


@given(_KEYS, _KEYS)
def test_a_key_stands_for_model_build_context_and_tokens(a: Any, b: Any) -> None:
    paths = [StateStore(Path("x"), name, who).state_path(tokens) for name, who, tokens in (a, b)]
    assert paths[0].parent == Path("x") and re.fullmatch(r"[\w.-]{35,74}\.kv", paths[0].name, re.A)
    same = file_label(a[0]) == file_label(b[0]) and a[1:] == b[1:]
    assert (paths[0] == paths[1]) == same


def test_the_longest_shared_prefix_is_restored(tmp_path: Path) -> None:
    for n in (20, 60, 100):
        stored(tmp_path, TOKENS[:n])
    stored(tmp_path, [*TOKENS[:30], *range(500, 600)])
    found = restored(tmp_path, [*TOKENS[:70], 1, 2])
    assert (found.n_tokens, len(found.state), found.problems) == (70, 100, ())
    assert restored(tmp_path, [*TOKENS[:40], 7]).n_tokens == 40
    assert restored(tmp_path, [9, *TOKENS]).n_tokens == 0


def test_memory_that_cannot_be_cut_takes_whole_states_only(tmp_path: Path) -> None:
    for n in (20, 60, 100):
        stored(tmp_path, TOKENS[:n])
    assert restored(tmp_path, [*TOKENS[:70], 1], BlockEngine(cuts=False)).n_tokens == 60


def test_nothing_is_restored_over_what_the_engine_holds(tmp_path: Path) -> None:
    stored(tmp_path)
    engine = BlockEngine()
    engine.cached = TOKENS[:90]
    assert restored(tmp_path, [*TOKENS, 1], engine).n_tokens == 0
    assert engine.cached == TOKENS[:90]


def test_what_is_quicker_to_compute_is_not_read(tmp_path: Path) -> None:
    n_bytes = stored(tmp_path).stat().st_size
    slow = store(tmp_path, read_bytes_per_s=n_bytes / 2.0)
    engine = BlockEngine()
    assert slow.restore(engine, [*TOKENS, 1], lambda n: 0.03 * n).n_tokens == 0  # type: ignore[arg-type]
    assert slow.restore(engine, [*TOKENS, 1], lambda n: 0.05 * n).n_tokens == 100  # type: ignore[arg-type]


def test_what_did_not_pay_is_not_stored_again(tmp_path: Path) -> None:
    path = stored(tmp_path)
    states, engine = store(tmp_path), BlockEngine()
    engine.cached = list(TOKENS)
    states.drop(TOKENS, for_good=True)
    assert states.save(engine, TOKENS) is None  # type: ignore[arg-type]
    assert path.stat().st_size == 0 and not restored(tmp_path, [*TOKENS, 1]).problems


# ---- bounded ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(["save", "use"]), st.integers(0, 7), st.integers(17, 60)),
        max_size=30,
    ),
    st.integers(70_000, 90_000),
)
def test_eviction_takes_the_oldest_and_keeps_the_limit(
    steps: list[tuple[str, int, int]], limit: int
) -> None:
    """Against a list kept by hand: the least recently used go first, and no more than needed."""
    with tempfile.TemporaryDirectory() as name:
        folder, engine, expected = Path(name), BlockEngine(), dict[Path, int]()
        folder.chmod(0o700)
        states = store(folder, limit_bytes=limit)
        for clock, (step, which, n) in enumerate(steps):
            tokens = [which, *range(n * 8)]
            path = states.state_path(tokens)
            if step == "save":
                engine.cached = tokens
                assert states.save(engine, tokens) == path  # type: ignore[arg-type]
                expected.pop(path, None)
                expected[path] = path.stat().st_size
            elif path in expected:
                engine.cached = []
                assert states.restore(engine, [*tokens, 1]).n_tokens  # type: ignore[arg-type]
                best = states.state_path(engine.cached)
                expected[best] = expected.pop(best)
                path = best
            if path in expected:
                os.utime(path, (clock, clock))  # file systems round times
            while sum(expected.values()) > limit:
                del expected[next(iter(expected))]
            assert {entry.path for entry in entries(folder)} == set(expected)


def test_too_many_or_too_large_goes_nowhere(tmp_path: Path) -> None:
    engine = BlockEngine()
    engine.cached = list(range(4000))
    assert store(tmp_path, limit_bytes=100_000).save(engine, engine.cached) is None  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    first = stored(tmp_path)
    assert evict(tmp_path, 0, keep=first) == [] and evict(tmp_path, 0) == [first]


def test_a_full_disk_or_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    engine = BlockEngine()
    engine.cached = list(range(4000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a file that may not grow fails where one on a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        assert store(tmp_path).save(engine, engine.cached) is None  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"
    (tmp_path / "file").write_text("x")
    nowhere = store(tmp_path / "file" / "states")
    assert nowhere.save(engine, engine.cached) is None  # type: ignore[arg-type]
    assert nowhere.restore(engine, [1] * 50).n_tokens == 0  # type: ignore[arg-type]


def test_half_written_files_of_dead_processes_are_swept(tmp_path: Path) -> None:
    dead = tmp_path / ".m-1-2.kv.999999999.partial"
    ours = tmp_path / f".m-1-2.kv.{os.getpid()}.partial"
    old = tmp_path / f".m-1-3.kv.{os.getpid()}.partial"
    for path in (dead, ours, old):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [ours]


# ---- hostile ------------------------------------------------------------------------------------


def checked(path: Path) -> list[int]:
    with mapped_state(path, IDENTITY, N_CTX) as (tokens, state):
        assert bytes(state) == state_of(tokens)
        return tokens


@settings(max_examples=60)
@given(st.data())
def test_no_edit_gets_through(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = stored(Path(name) / "s", TOKENS[:20])
        assert checked(path) == TOKENS[:20]
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1), label="at")
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]), label="kind")
        edited = {
            "flip": whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
            "cut": whole[:at],
            "insert": whole[:at] + b"\x00" + whole[at:],
            "zero": whole[:at] + bytes(len(whole) - at),
        }[kind]
        path.write_bytes(edited)
        if edited != whole:
            with pytest.raises((IntegrityError, InputError)):
                checked(path)


def footer(n_tokens: object, state_bytes: object, length: int | None = None) -> bytes:
    text = json.dumps({**IDENTITY, "n_tokens": n_tokens, "state_bytes": state_bytes}).encode()
    return text + (len(text) if length is None else length).to_bytes(4, "little") + MAGIC


@pytest.mark.parametrize(
    "content",
    [
        b"",
        MAGIC,
        b"\xff\xff\xff\xff" + MAGIC,
        bytes(100) + footer(25, 0),
        bytes(100) + footer(-1, 104),
        bytes(100) + footer(0, 100),
        bytes(100) + footer(1, 96.0),
        bytes(100) + footer(True, 96),
        bytes(100) + footer(2**40, 96),
        bytes(100) + footer(1, 2**60),
        bytes(100) + footer(1, -4),
        bytes(100) + footer("1", "96"),
        bytes(100) + footer(1, 96, length=2**31),
        bytes(100) + footer(1, 96, length=0),
        bytes(100) + b"[" * 60_000 + (60_000).to_bytes(4, "little") + MAGIC,
        bytes(100) + footer(1, 96),
    ],
)
def test_sizes_that_lie(tmp_path: Path, content: bytes) -> None:
    path = stored(tmp_path)
    path.write_bytes(content)
    with pytest.raises(EdgeError):
        checked(path)
    assert restored(tmp_path, [*TOKENS, 1]).n_tokens == 0


def test_a_huge_sparse_file_is_not_read(tmp_path: Path) -> None:
    path = stored(tmp_path)
    with path.open("wb") as file:
        file.seek(1 << 40)
        file.write(footer(1, (1 << 40) - 4))
    assert restored(tmp_path, [*TOKENS, 1]).n_tokens == 0
    stored(tmp_path, [5, *TOKENS])
    assert [entry.path.exists() for entry in entries(tmp_path)] == [True], "and the first to go"


@pytest.mark.parametrize(
    "make",
    [
        lambda path, good: path.symlink_to(good),
        lambda path, good: path.mkdir(),
        lambda path, good: os.mkfifo(path),
        lambda path, good: path.symlink_to("/dev/zero"),
    ],
)
def test_what_is_no_file_is_passed_over(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    good = stored(tmp_path / "elsewhere")
    folder = tmp_path / "states"
    folder.mkdir(mode=0o700)
    make(folder / good.name, good)
    assert restored(folder, [*TOKENS, 1]).n_tokens == 0
    assert entries(folder) == [] and clear(folder) == 0
    assert good.exists() and os.path.lexists(folder / good.name)


def test_another_build_is_told_and_removed(tmp_path: Path) -> None:
    path = stored(tmp_path)
    found = restored(tmp_path, [*TOKENS, 1], BlockEngine(build="2"))
    assert found.n_tokens == 0 and "build" in found.problems[0] and len(found.problems) == 1
    assert not path.exists()


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
@pytest.mark.parametrize("who", ["file", "folder", "owner"])
def test_what_others_may_have_written_is_not_used(tmp_path: Path, who: str) -> None:
    folder = tmp_path / "states"
    path = stored(folder)
    if who == "file":
        path.chmod(0o666)
    elif who == "folder":
        folder.chmod(0o777)
    elif os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    else:
        os.chown(path, 12345, -1)
    found = restored(folder, [*TOKENS, 1])
    assert found.n_tokens == 0
    if who == "folder":
        engine = BlockEngine()
        engine.cached = [1] * 50
        assert store(folder).save(engine, engine.cached) is None  # type: ignore[arg-type]
    else:
        assert "another user" in found.problems[0]
    with pytest.raises(IntegrityError):
        check_owner(tmp_path / "missing")


# ---- together, and where ------------------------------------------------------------------------


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.edge.states.block_engine", str(folder), str(seed)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    left = entries(folder)
    assert left and sum(entry.n_bytes for entry in left) <= 2 * 100_000
    for entry in left:
        assert checked(entry.path)
    assert {path.suffix for path in folder.iterdir()} == {".kv"}


def test_states_lie_beside_a_bundle_or_in_the_cache(tmp_path: Path) -> None:
    bundle = tmp_path / "releases" / "assistant"
    bundle.mkdir(parents=True)
    beside = bundle.with_name("assistant.states")
    assert beside_bundle(bundle) == beside
    (tmp_path / "current").symlink_to(bundle)
    assert beside_bundle(tmp_path / "current") == beside, "a link moves on, its states stay"
    beside.mkdir(mode=0o700)
    assert beside_bundle(bundle) == beside
    beside.chmod(0o777)
    assert beside_bundle(bundle) == user_folder()
    beside.rmdir()
    beside.symlink_to(tmp_path)
    assert beside_bundle(bundle) == user_folder()
    assert beside_bundle(Path("/")) == user_folder()


@pytest.mark.parametrize(
    ("text", "expected"), [("", 256 * 2**20), ("off", 0), ("0", 0), ("64MiB", 64 * 2**20)]
)
def test_the_limit_is_the_users(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert limit_bytes() == expected
    monkeypatch.setenv(VARIABLE, "lots")
    with pytest.raises(UsageError, match="BOARDFIT_STATES"):
        limit_bytes()
