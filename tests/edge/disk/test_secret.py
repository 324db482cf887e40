"""States that this user has not made: corrupted, handed over, planted, beside pinned keys."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from boardfit.edge.disk.secret import N_BYTES, NAME, user_secret
from boardfit.edge.disk.verified import cache_directory, config_directory
from boardfit.edge.engines.kv_state import MAGIC, mapped_state
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UnsafeInputError
from boardfit.edge.states.place import beside_bundle, user_folder
from boardfit.edge.states.store import StateStore, claim, clear, entries, is_claimed
from boardfit.edge.trust.pins import TRUSTED_KEYS
from tests.edge.states.block_engine import N_CTX, BlockEngine, state_of
from tests.edge.states.test_store import IDENTITY, TOKENS, checked, restored, store, stored

_TAIL = struct.Struct("<I8s")


def parts(data: bytes) -> tuple[bytes, dict[str, object]]:
    """State with its tokens, and the footer."""
    length, _ = _TAIL.unpack(data[-_TAIL.size :])
    end = len(data) - _TAIL.size - length
    return data[:end], json.loads(data[end : -_TAIL.size])


def joined(content: bytes, footer: dict[str, object]) -> bytes:
    text = json.dumps(footer, sort_keys=True).encode()
    return content + text + _TAIL.pack(len(text), MAGIC)


def with_footer(**changes: object) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        content, footer = parts(data)
        kept = {key: value for key, value in {**footer, **changes}.items() if value is not ...}
        return joined(content, kept)

    return edit


def with_bit(at: float, bit: int = 0) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        place = min(len(data) - 1, int(at * len(data)))
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

    return edit


def other_tokens(data: bytes) -> bytes:
    """The state of these tokens under the name of others."""
    content, footer = parts(data)
    n = len(TOKENS) * 4
    return joined(content[:-n] + struct.pack(f"<{len(TOKENS)}i", *reversed(TOKENS)), footer)


def other_state(data: bytes) -> bytes:
    content, footer = parts(data)
    n = len(TOKENS) * 4
    return joined(state_of([9] * len(TOKENS)) + content[-n:], footer)


def moved_border(data: bytes) -> bytes:
    """The same bytes, more of them said to be tokens."""
    content, footer = parts(data)
    n_tokens = len(TOKENS) + 4
    n_bytes = len(content) - 4 * n_tokens
    return joined(content, {**footer, "n_tokens": n_tokens, "state_bytes": n_bytes})


def spaced(data: bytes) -> bytes:
    content, footer = parts(data)
    text = json.dumps(footer, sort_keys=True, indent=1).encode()
    return content + text + _TAIL.pack(len(text), MAGIC)


CORRUPTED: list[Callable[[bytes], bytes]] = [
    *(with_bit(share, bit) for share in (0.0, 0.1, 0.33, 0.5, 0.75, 0.9) for bit in (0, 7)),
    with_footer(mac=...),
    with_footer(mac=""),
    with_footer(mac=None),
    with_footer(mac="0" * 64),
    with_footer(mac=["a"]),
    with_footer(mac="\u00e9" * 64),
    with_footer(extra=1),
    with_footer(build="1", model="block", other=None),
    other_tokens,
    other_state,
    moved_border,
    spaced,
    lambda data: data[: len(data) // 2],
    lambda data: data[:7] + data,
    lambda data: data + data,
]


@pytest.mark.parametrize("corrupt", CORRUPTED)
def test_no_corrupted_state_is_used(tmp_path: Path, corrupt: Callable[[bytes], bytes]) -> None:
    assert len(CORRUPTED) >= 25
    path = stored(tmp_path / "states")
    data = path.read_bytes()
    assert corrupt(data) != data
    path.write_bytes(corrupt(data))
    with pytest.raises(EdgeError):
        checked(path)
    engine = BlockEngine()
    found = restored(tmp_path / "states", [*TOKENS, 1], engine)
    assert (found.n_tokens, engine.cached) == (0, [])
    path.write_bytes(data)
    assert checked(path) == TOKENS


def test_a_state_of_another_user_is_not_used(tmp_path: Path) -> None:
    """Whole and right in all it says; made with another secret."""
    path = stored(tmp_path / "states")
    (config_directory() / NAME).unlink()
    with pytest.raises(IntegrityError, match="not saved by this user"):
        checked(path)
    found = restored(tmp_path / "states", [*TOKENS, 1])
    assert found.n_tokens == 0 and len(found.problems) == 1
    assert not path.exists(), "a lost secret costs the time to compute it again"
    assert stored(tmp_path / "states") == path and checked(path) == TOKENS


# ---- the secret ----------------------------------------------------------------------------------


def test_the_secret_is_private_and_stays(tmp_path: Path) -> None:
    secret = user_secret()
    path = config_directory() / NAME
    assert len(secret) == N_BYTES and user_secret() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [NAME], "nothing else is left"


def link_to_known(path: Path) -> None:
    known = path.with_name("known")
    known.write_bytes(b"k" * N_BYTES)
    known.chmod(0o600)
    path.symlink_to(known)


def readable_by_others(path: Path) -> None:
    path.write_bytes(b"k" * N_BYTES)
    path.chmod(0o640)


def of_another(path: Path) -> None:
    path.write_bytes(b"k" * N_BYTES)
    path.chmod(0o600)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)


def too_short(path: Path) -> None:
    path.touch(0o600)


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
@pytest.mark.parametrize(
    "plant", [link_to_known, readable_by_others, of_another, too_short, Path.mkdir, os.mkfifo]
)
def test_a_secret_that_others_may_know_is_refused(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = stored(tmp_path / "states")
    key = config_directory() / NAME
    key.unlink()
    plant(key)
    with pytest.raises(UnsafeInputError, match="secret") as caught:
        user_secret()
    assert str(key) in str(caught.value.next_step)
    found = restored(tmp_path / "states", [*TOKENS, 1])
    assert found.n_tokens == 0 and "secret" in found.problems[0]
    assert path.exists(), "that is no fault of the state"
    engine = BlockEngine()
    engine.cached = [1] * 50
    assert store(tmp_path / "states").save(engine, engine.cached) is None  # type: ignore[arg-type]


def test_without_a_place_for_configuration_it_lies_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    secret = user_secret()
    assert (cache_directory() / NAME).read_bytes() == secret == user_secret()
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="no secret can be kept"):
        user_secret()
    assert restored(tmp_path / "states", [*TOKENS, 1]).n_tokens == 0


# ---- a stranger's folder -------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "kit").mkdir()
    return tmp_path / "kit"


def ours(folder: Path) -> StateStore:
    return StateStore(folder, "block", {}, claims=True)


def test_a_folder_that_came_with_a_bundle_is_left_alone(tmp_path: Path, bundle: Path) -> None:
    """Not read, not written to, nothing removed."""
    planted = stored(tmp_path / "elsewhere")
    beside = tmp_path / "kit.states"
    beside.mkdir(mode=0o700)
    (beside / planted.name).write_bytes(planted.read_bytes())
    (beside / "photo.kv").write_bytes(b"not a state")
    (beside / ".x.kv.999999999.partial").write_bytes(b"x")
    before = {path.name: path.read_bytes() for path in beside.iterdir()}
    assert beside_bundle(bundle) == user_folder()
    states, engine = ours(beside), BlockEngine()
    assert states.restore(engine, [*TOKENS, 1]).n_tokens == 0  # type: ignore[arg-type]
    engine.cached = list(TOKENS)
    assert states.save(engine, TOKENS) is None  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in beside.iterdir()} == before


def test_a_folder_marked_by_another_user_is_left_alone(tmp_path: Path, bundle: Path) -> None:
    """The whole folder came along, mark and all, as tar and git bring it."""
    beside = tmp_path / "kit.states"
    engine = BlockEngine()
    engine.cached = list(TOKENS)
    assert ours(beside).save(engine, TOKENS)  # type: ignore[arg-type]
    (config_directory() / NAME).unlink()  # from here on we are somebody else
    before = {path.name: path.read_bytes() for path in beside.iterdir()}
    assert beside_bundle(bundle) == user_folder()
    engine = BlockEngine()
    assert ours(beside).restore(engine, [*TOKENS, 1]).n_tokens == 0  # type: ignore[arg-type]
    assert not engine.cached
    engine.cached = list(TOKENS)
    assert ours(beside).save(engine, TOKENS) is None  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in beside.iterdir()} == before


def test_our_own_folder_is_marked_and_found_again(tmp_path: Path, bundle: Path) -> None:
    beside = beside_bundle(bundle)
    assert beside == tmp_path / "kit.states"
    states, engine = ours(beside), BlockEngine()
    engine.cached = list(TOKENS)
    path = states.save(engine, TOKENS)  # type: ignore[arg-type]
    assert path is not None and is_claimed(beside)
    assert stat.S_IMODE(beside.stat().st_mode) == 0o700
    assert beside_bundle(bundle) == beside
    assert ours(beside).restore(BlockEngine(), [*TOKENS, 1]).n_tokens == 100  # type: ignore[arg-type]
    assert clear(beside) > 0 and entries(beside) == []


@pytest.mark.parametrize("marked", [True, False])
def test_links_in_a_folder_of_states_lead_nowhere(
    tmp_path: Path, bundle: Path, marked: bool
) -> None:
    beside, states = tmp_path / "kit.states", ours(tmp_path / "kit.states")
    beside.mkdir(mode=0o700)
    if marked:
        claim(beside)
    precious = tmp_path / "precious"
    precious.write_bytes(b"kept")
    name = states.state_path(TOKENS).name
    for planted in (name, f".{name}.{os.getpid()}.partial", "a.kv"):
        (beside / planted).symlink_to(precious)
    engine = BlockEngine()
    engine.cached = list(TOKENS)
    states.save(engine, TOKENS)  # type: ignore[arg-type]
    states.restore(engine, [*TOKENS, 1])  # type: ignore[arg-type]
    states.drop(TOKENS, for_good=True)
    if beside_bundle(bundle) == beside:
        clear(beside)
    assert precious.read_bytes() == b"kept" and not precious.is_symlink()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path, bundle: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "mine.kv").write_bytes(b"kept")
    (tmp_path / "kit.states").symlink_to(home)
    assert beside_bundle(bundle) == user_folder()
    engine = BlockEngine()
    engine.cached = list(TOKENS)
    assert ours(tmp_path / "kit.states").save(engine, TOKENS) is None  # type: ignore[arg-type]
    assert [path.name for path in home.iterdir()] == ["mine.kv"]


@pytest.mark.parametrize("where", ["beside", "variable", "above"])
def test_where_keys_are_pinned_nothing_beside_a_bundle_is_used(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "deep" / "kit"
    bundle.mkdir(parents=True)
    beside = beside_bundle(bundle)
    engine = BlockEngine()
    engine.cached = list(TOKENS)
    assert ours(beside).save(engine, TOKENS)  # type: ignore[arg-type]
    if where == "variable":
        monkeypatch.setenv("BOARDFIT_TRUSTED_KEYS", str(tmp_path / "missing"))
    else:
        folder = bundle.parent if where == "beside" else tmp_path
        (folder / TRUSTED_KEYS).write_text("")
    assert beside_bundle(bundle) == user_folder()


def test_a_state_is_of_this_engine_whoever_signed_it(tmp_path: Path) -> None:
    path = stored(tmp_path / "states")
    for changed in ({"model": "other"}, {"build": "2"}):
        with (
            pytest.raises(IntegrityError, match="saved with"),
            mapped_state(path, {**IDENTITY, **changed}, N_CTX),
        ):
            pass
