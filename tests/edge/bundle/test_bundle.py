"""A bundle is believed only after every rule has been checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bundle.bundle import (
    MANIFEST,
    SUMS,
    check_name,
    open_bundle,
    pack_bundle,
    seal_bundle,
    unpack_bundle,
)
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UnsafeInputError
from boardfit.edge.types import Plan

PLAN = Plan(
    engine="llama_cpp",
    recipe="q4_0",
    device="raspberry-pi-5-8gb",
    n_ctx=1024,
    kv_type="f16",
    n_threads=4,
    n_batch=512,
    n_ubatch=512,
    use_mmap=True,
    repack=True,
    artifact_bytes=5,
    memory={"weights_mapped": 5, "kv_cache": 7},
    budget_bytes=100,
)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "model.gguf").write_bytes(b"hello")
    (directory / "LICENSE").write_text("free\n")
    document = {"model": {"name": "tiny"}, "plan": PLAN.to_dict(), "recipe": {"id": "q4_0"}}
    seal_bundle(directory, document, {"model.gguf": "model", "LICENSE": "license"}, {})
    return directory


def edit_manifest(directory: Path, change: Any) -> None:
    """Change the manifest and make SHA256SUMS agree again, as a careful forger would."""
    document = json.loads((directory / MANIFEST).read_text())
    change(document)
    roles = {name: entry.get("role", "model") for name, entry in document["files"].items()}
    text = json.dumps(document)
    (directory / MANIFEST).write_text(text)
    sums = [f"{document['files'][name].get('sha256')}  {name}" for name in roles]
    sums.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}")
    (directory / SUMS).write_text("\n".join(sums) + "\n")


def test_opens_what_was_sealed(sealed: Path) -> None:
    bundle = open_bundle(sealed)
    assert bundle.name == "tiny"
    assert bundle.plan == PLAN
    assert bundle.model_path.read_bytes() == b"hello"
    assert len(bundle.id) == 64


def test_sealing_twice_gives_the_same_id(sealed: Path) -> None:
    first = open_bundle(sealed).id
    document = json.loads((sealed / MANIFEST).read_text())
    del document["files"]
    assert seal_bundle(sealed, document, {"model.gguf": "model", "LICENSE": "license"}, {}) == first


def test_one_edited_byte_is_found_even_after_it_was_verified_before(sealed: Path) -> None:
    open_bundle(sealed)
    info = (sealed / "model.gguf").stat()
    (sealed / "model.gguf").write_bytes(b"hellO")
    os.utime(sealed / "model.gguf", ns=(info.st_atime_ns, info.st_mtime_ns))  # a forger's touch -r
    with pytest.raises(IntegrityError, match=r"model\.gguf: sha256 is"):
        open_bundle(sealed)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if files of this test had been written long ago, on a disk."""
    monkeypatch.setattr("boardfit.edge.disk.verified.SETTLED_NS", 0)
    monkeypatch.setattr("boardfit.edge.disk.verified.has_exact_ctime", lambda descriptor: True)


@pytest.mark.usefixtures("settled")
def test_a_verified_file_is_not_hashed_again(sealed: Path) -> None:
    hashed: list[int] = []
    open_bundle(sealed, progress=lambda done, total: hashed.append(done))
    assert hashed
    hashed.clear()
    open_bundle(sealed, progress=lambda done, total: hashed.append(done))
    assert not hashed
    open_bundle(sealed, verify=True, progress=lambda done, total: hashed.append(done))
    assert hashed


@pytest.mark.parametrize("name", ["model.gguf", "LICENSE"])
def test_a_shorter_or_missing_file_is_named(sealed: Path, name: str) -> None:
    (sealed / name).write_bytes(b"x")
    with pytest.raises(IntegrityError, match=name):
        open_bundle(sealed)
    (sealed / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        open_bundle(sealed)


def test_unknown_files_and_links_are_refused(sealed: Path) -> None:
    (sealed / "extra.sh").write_text("boo")
    with pytest.raises(UnsafeInputError, match=r"extra\.sh is not listed"):
        open_bundle(sealed)
    (sealed / "extra.sh").unlink()
    (sealed / "model.gguf").rename(sealed.parent / "elsewhere")
    (sealed / "model.gguf").symlink_to(sealed.parent / "elsewhere")
    with pytest.raises(UnsafeInputError, match="is a link"):
        open_bundle(sealed)


def test_a_manifest_edited_alone_is_found(sealed: Path) -> None:
    path = sealed / MANIFEST
    path.write_text(path.read_text().replace("tiny", "evil"))
    with pytest.raises(IntegrityError, match="do not agree"):
        open_bundle(sealed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=99), "schema 99"),
        (lambda d: d.update(kind="zip"), "not a boardfit bundle"),
        (lambda d: d["plan"].update(n_cxt=5), "Did you mean 'n_ctx'"),
        (lambda d: d["files"]["model.gguf"].update(role="virus"), "role must be one of"),
        (lambda d: d["files"]["model.gguf"].update(n_bytes=-1), "n_bytes must be a whole number"),
        (lambda d: d["files"].update({"../x": dict(d["files"]["LICENSE"])}), "not allowed"),
        (lambda d: d.pop("plan"), "'plan' is missing"),
    ],
)
def test_a_forged_manifest_is_refused(sealed: Path, change: Any, message: str) -> None:
    edit_manifest(sealed, change)
    with pytest.raises(InputError, match=message):
        open_bundle(sealed)


def test_not_a_bundle_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no bundle") as caught:
        open_bundle(tmp_path / "nowhere")
    assert "edge build" in (caught.value.next_step or "")


def test_pack_and_unpack_round_trip(sealed: Path, tmp_path: Path) -> None:
    pack_bundle(sealed, tmp_path / "one.tar")
    pack_bundle(sealed, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    unpacked = unpack_bundle(tmp_path / "one.tar", tmp_path / "copy")
    assert unpacked.id == open_bundle(sealed).id


def test_a_truncated_tar_leaves_nothing_behind(sealed: Path, tmp_path: Path) -> None:
    pack_bundle(sealed, tmp_path / "one.tar")
    data = (tmp_path / "one.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:1700])
    with pytest.raises(EdgeError):
        unpack_bundle(tmp_path / "cut.tar", tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", ".hidden", "a\\b", "a\nb"])
def test_tar_entries_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(UnsafeInputError):
        unpack_bundle(tmp_path / "bad.tar", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_tar_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        entry = tarfile.TarInfo("model.gguf")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(UnsafeInputError, match="not a plain file"):
        unpack_bundle(tmp_path / "bad.tar", tmp_path / "copy")


@given(st.text(max_size=40))
def test_an_accepted_name_stays_inside(name: str) -> None:
    try:
        check_name(name)
    except UnsafeInputError:
        return
    parts = Path(name).parts
    assert ".." not in parts and not Path(name).is_absolute() and "\x00" not in name
