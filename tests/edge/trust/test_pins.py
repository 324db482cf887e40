"""Key files: what they accept on every start, and that a broken one accepts nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boardfit.edge.bundle.bundle import (
    MANIFEST,
    SUMS,
    bundle_signers,
    open_bundle,
    pack_bundle,
    seal_bundle,
    unpack_bundle,
)
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.errors import IntegrityError, UnsafeInputError
from boardfit.edge.slots import layout
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from boardfit.edge.trust import pins
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.trust.pins import TRUSTED_KEYS, format_trusted_keys, parse_trusted_keys
from boardfit.edge.trust.signing import SigningKey

Keys = tuple[SigningKey, SigningKey]


def place_release(bundle: Path, root: Path) -> str:
    """The bundle as a flash would leave it; returns its id."""
    release_id = open_bundle(bundle, check_signature=False).id
    target = root / layout.bundle_folder(release_id)
    target.mkdir(parents=True)
    for path in bundle.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return release_id


@pytest.fixture
def root(tmp_path: Path, bundle: Path, keys: Keys) -> Path:
    """A board with one signed release, which is current, and its key pinned."""
    sign_bundle(bundle, keys[0])
    root = tmp_path / "root"
    release_id = place_release(bundle, root)
    Slots(LocalFiles(root)).activate(release_id)
    (root / TRUSTED_KEYS).write_bytes(format_trusted_keys([keys[0].public]))
    return root


def ways_in(root: Path) -> list[Path]:
    """Every path that leads to the current release's bundle."""
    return [root / "current/bundle", (root / "current").resolve() / "bundle"]


def test_a_signed_release_opens_by_every_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ways_in(root):
        assert open_bundle(path).name == "cargo"
    monkeypatch.chdir(root / "current")
    assert open_bundle("bundle").name == "cargo"


@pytest.mark.parametrize("verify", [None, True, False])
def test_an_unsigned_release_opens_by_no_path(
    root: Path, tmp_path: Path, verify: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ways_in(root)[1] / SIGNATURE).unlink()
    (tmp_path / "way round").symlink_to(ways_in(root)[0])
    for path in (*ways_in(root), tmp_path / "way round"):
        with pytest.raises(IntegrityError, match="is not signed"):
            open_bundle(path, verify=verify)
    monkeypatch.chdir(ways_in(root)[1])
    with pytest.raises(IntegrityError, match="is not signed"):
        open_bundle(".", verify=verify)


def test_a_release_that_is_a_link_out_of_the_board_is_still_judged(root: Path, other: Path) -> None:
    folder = ways_in(root)[1]
    folder.rename(folder.with_name("old"))
    folder.symlink_to(other)
    with pytest.raises(IntegrityError, match="is not signed"):
        open_bundle(folder)


def test_an_edited_bundle_with_all_its_hashes_renewed_is_refused(root: Path, keys: Keys) -> None:
    """The attacker edits the model and seals again: hashes agree, the signature does not."""
    folder = ways_in(root)[1]
    signature = (folder / SIGNATURE).read_bytes()
    opened = open_bundle(folder)
    (folder / "model.gguf").write_bytes(b"poison! " * 4000)
    kept = {k: v for k, v in opened.manifest.items() if k not in ("kind", "schema", "files")}
    seal_bundle(folder, kept, {"model.gguf": "model"}, {})
    assert not (folder / SIGNATURE).exists()  # a seal drops the signature of another manifest
    (folder / SIGNATURE).write_bytes(signature)
    assert open_bundle(folder, check_signature=False)
    with pytest.raises(IntegrityError, match="edited after it was signed"):
        open_bundle(folder)
    with pytest.raises(IntegrityError, match="edited after it was signed"):
        sign_bundle(folder, keys[1])  # and nobody signs over it by mistake


def test_another_signer_is_refused_until_it_is_pinned_too(root: Path, keys: Keys) -> None:
    folder = ways_in(root)[1]
    (folder / SIGNATURE).unlink()
    sign_bundle(folder, keys[1])
    with pytest.raises(IntegrityError, match="is signed by SHA256"):
        open_bundle(folder)
    (root / TRUSTED_KEYS).write_bytes(format_trusted_keys([k.public for k in keys]))
    assert open_bundle(folder)


@pytest.mark.parametrize(
    "data",
    [b"", b"# only a comment\n", b"ssh-ed25519 AAAA broken\n", b"\xff\xfe", b"ssh-rsa AAAA x\n",
     b"x" * (pins.MAX_KEYS_BYTES + 1)],
)  # fmt: skip
def test_a_broken_key_file_accepts_nothing(root: Path, data: bytes) -> None:
    (root / TRUSTED_KEYS).write_bytes(data)
    slots = Slots(LocalFiles(root))
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        open_bundle(root / "current/bundle")
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        slots.verify(str(slots.current()))


@pytest.mark.parametrize("kind", ["folder", "dangling", "pipe", "link"])
def test_a_key_file_that_is_no_file_accepts_nothing(root: Path, tmp_path: Path, kind: str) -> None:
    path = root / TRUSTED_KEYS
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        open_bundle(root / "current/bundle")
    slots = Slots(LocalFiles(root))
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        slots.verify(str(slots.current()))
    assert data  # the fixture pinned one


def test_the_machines_own_file_counts_too(
    root: Path, bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.SYSTEM_KEYS.parent.mkdir()
    pins.SYSTEM_KEYS.write_bytes(format_trusted_keys([keys[1].public]))
    for path in (root / "current/bundle", bundle):
        with pytest.raises(IntegrityError, match="is signed by"):
            open_bundle(path)
    sign_bundle(bundle, keys[1])
    assert open_bundle(bundle)
    monkeypatch.setenv(pins.VARIABLE, str(root / "missing"))
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        open_bundle(bundle)


def test_slots_switch_and_roll_back_to_nothing_unsigned(
    root: Path, other: Path, keys: Keys
) -> None:
    slots = Slots(LocalFiles(root))
    good = slots.current()
    unsigned = place_release(other, root)
    for refused in (slots.activate, slots.rollback, slots.verify):
        with pytest.raises(IntegrityError, match=r"is refused: .*not signed"):
            refused(unsigned)
    assert slots.current() == good
    (root / TRUSTED_KEYS).unlink()
    assert slots.activate(unsigned) == good


def test_the_signature_of_another_release_is_refused(root: Path, other: Path, keys: Keys) -> None:
    slots, release_id = Slots(LocalFiles(root)), place_release(other, root)
    target = root / layout.bundle_folder(release_id) / SIGNATURE
    target.write_bytes((ways_in(root)[0] / SIGNATURE).read_bytes())
    with pytest.raises(IntegrityError, match="belongs to another"):
        slots.activate(release_id)


def test_a_signature_travels_in_the_tar(tmp_path: Path, bundle: Path, keys: Keys) -> None:
    sign_bundle(bundle, keys[0])
    signed_id = open_bundle(bundle).id  # the first signature numbers the release
    sign_bundle(bundle, keys[1])
    sign_bundle(bundle, keys[0])
    pack_bundle(bundle, tmp_path / "packed.tar")
    opened = unpack_bundle(tmp_path / "packed.tar", tmp_path / "unpacked")
    assert opened.id == signed_id
    assert bundle_signers(opened) == [keys[1].public, keys[0].public]


def test_signing_checks_what_it_vouches_for(bundle: Path, keys: Keys) -> None:
    (bundle / "model.gguf").write_bytes(b"WEIGHTS " * 4000)
    with pytest.raises(IntegrityError):
        sign_bundle(bundle, keys[0])
    assert not (bundle / SIGNATURE).exists()


def test_a_signature_that_is_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / SIGNATURE).symlink_to(tmp_path)
    with pytest.raises(UnsafeInputError, match="is a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [MANIFEST, SUMS, SIGNATURE, "model.gguf\n"])
def test_names_that_no_file_of_a_bundle_may_have(bundle: Path, name: str) -> None:
    with pytest.raises(UnsafeInputError):
        seal_bundle(bundle, {}, {"model.gguf": "model", name: "part"}, {})


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_any_key_file_is_read_or_shuts(keys: Keys, junk: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_trusted_keys(junk, "there")
    data = format_trusted_keys([keys[0].public])
    if b"\n" not in junk and not junk.strip().startswith(b"#") and junk.strip():
        with pytest.raises(IntegrityError):
            parse_trusted_keys(data + junk, "there")
    assert parse_trusted_keys(data + data, "there") == (keys[0].public,)
