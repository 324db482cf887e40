"""What was verified is what is used: files swapped and edited at every moment in between."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import boardfit.edge.disk.verified
from boardfit.edge.bundle.bundle import (
    SMALL,
    Bundle,
    open_bundle,
    pack_bundle,
    seal_bundle,
    unpack_bundle,
)
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.disk.opened_file import OpenedFile, OpenedFolder
from boardfit.edge.disk.verified import VerifiedFiles, has_exact_ctime
from boardfit.edge.engines import open_engine
from boardfit.edge.engines.llama.context import LlamaContext
from boardfit.edge.engines.target import open_model
from boardfit.edge.errors import InputError, IntegrityError, UnsafeInputError
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.trust.pins import VARIABLE, format_trusted_keys
from boardfit.edge.trust.signing import SigningKey
from tests.edge.flash.cargo import PLAN, make_bundle
from tests.edge.trust.real import OURS, THEIRS, real_bundle, says, scripted

Keys = tuple[SigningKey, SigningKey]


@pytest.fixture
def pinned(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    """A key that this machine accepts; no other."""
    (tmp_path / "accepted").write_bytes(format_trusted_keys([keys[0].public]))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "accepted"))
    return keys[0]


def once(action: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress callback that does something the first time that it is called."""
    todo = [action]

    def progress(done: int, total: int) -> None:
        while todo:
            todo.pop()()

    return progress


def edit(path: Path, at: int = 0) -> None:
    """Flip a bit in place, and put the times back as far as a program can."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---- (a) an edit while it is hashed --------------------------------------------------------------


@pytest.mark.parametrize("verify", [None, True])
def test_an_edit_while_it_is_hashed_does_not_count_as_verified(
    tmp_path: Path, verify: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first chunk was read already when it changes."""
    monkeypatch.setattr(boardfit.edge.disk.verified, "SETTLED_NS", 0)
    bundle = make_bundle(tmp_path / "kit", {"model.gguf": bytes(3 << 20)})
    with pytest.raises(IntegrityError):
        open_bundle(bundle, verify=verify, progress=once(lambda: edit(bundle / "model.gguf")))
    with pytest.raises(IntegrityError):
        open_bundle(bundle)


def test_a_file_that_is_written_all_the_time_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "kit", {"model.gguf": bytes(3 << 20)})

    def progress(done: int, total: int) -> None:
        edit(bundle / "model.gguf", at=7)
        edit(bundle / "model.gguf", at=7)

    with pytest.raises(IntegrityError, match="changes while it is read"):
        open_bundle(bundle, progress=progress)


# ---- (b) edits that move no time -----------------------------------------------------------------


def places() -> Iterator[str]:
    """Folders on file systems of different kinds."""
    yield tempfile.gettempdir()
    if os.access("/dev/shm", os.W_OK):
        yield "/dev/shm"


@pytest.mark.parametrize("place", places())
@pytest.mark.parametrize("was_dirty", [True, False])
def test_an_edit_through_a_mapping_is_found(
    place: str, was_dirty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boardfit.edge.disk.verified, "SETTLED_NS", 0)
    with tempfile.TemporaryDirectory(dir=place) as name:
        bundle = make_bundle(Path(name) / "kit", {"model.gguf": b"weights " * 4000})
        with (bundle / "model.gguf").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            if was_dirty:
                mapped[0] = mapped[0]
            open_bundle(bundle)
            mapped[0] ^= 1
            with pytest.raises(IntegrityError, match="sha256 is"):
                open_bundle(bundle)
            mapped[0] ^= 1
            assert open_bundle(bundle)


def test_only_files_that_are_older_than_the_clocks_tick_are_remembered(tmp_path: Path) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache.json"
    path.write_bytes(b"x" * 1000)
    known = VerifiedFiles(cache)
    digest = known.verify(OpenedFile.open(path))
    assert not known.is_known(OpenedFile.open(path), digest), "it was written a moment ago"
    os.utime(path, (0, 0))  # which moves ctime to now
    known.verify(OpenedFile.open(path))
    assert not known.is_known(OpenedFile.open(path), digest)
    os.utime(path, (2e9 * 2, 2e9 * 2))  # in the future
    known.verify(OpenedFile.open(path))
    assert not known.is_known(OpenedFile.open(path), digest)


def test_an_old_file_on_a_disk_is_remembered_until_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boardfit.edge.disk.verified, "SETTLED_NS", 0)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    file = OpenedFile.open(path)
    known = VerifiedFiles(tmp_path / "cache.json")
    digest = known.verify(file)
    assert known.is_known(file, digest) == has_exact_ctime(file.fileno())
    known.save()
    assert VerifiedFiles(tmp_path / "cache.json").is_known(file, digest) == has_exact_ctime(
        file.fileno()
    )
    path.chmod(0o600)
    path.chmod(0o644)
    assert not known.is_known(file, digest)


def test_memory_file_systems_and_proc_are_not_remembered() -> None:
    for name in ("/dev/shm", "/proc/self/stat"):
        if os.path.exists(name):
            descriptor = os.open(name, os.O_RDONLY)
            assert not has_exact_ctime(descriptor)
            os.close(descriptor)


def test_with_keys_pinned_every_start_hashes_every_byte(
    tmp_path: Path, pinned: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boardfit.edge.disk.verified, "SETTLED_NS", 0)
    bundle = make_bundle(tmp_path / "kit", {"model.gguf": b"weights " * 4000})
    sign_bundle(bundle, pinned)
    hashed: list[int] = []
    for _ in range(3):
        hashed.clear()
        open_bundle(bundle, progress=lambda done, total: hashed.append(done))
        assert max(hashed) == 32_000


# ---- (c) another file under the same name --------------------------------------------------------


def swap_file(bundle: Path, evil: Path) -> None:
    (bundle / "model.gguf").rename(bundle.parent / "aside.gguf")
    shutil.copy(evil, bundle / "model.gguf")


def swap_folder(bundle: Path, evil: Path) -> None:
    bundle.rename(bundle.parent / "aside")
    bundle.mkdir()
    shutil.copy(evil, bundle / "model.gguf")


def swap_for_link(bundle: Path, evil: Path) -> None:
    (bundle / "model.gguf").unlink()
    (bundle / "model.gguf").symlink_to(evil)


SWAPS = [swap_file, swap_folder, swap_for_link]


@pytest.mark.engine
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("moment", ["hashing", "before lint", "before native load"])
def test_a_swapped_model_never_answers(
    tmp_path: Path,
    pinned: SigningKey,
    swap: Callable[[Path, Path], None],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evil = scripted(tmp_path / "evil.gguf", THEIRS)
    bundle = real_bundle(tmp_path / "kit")
    sign_bundle(bundle, pinned)
    if moment == "hashing":
        opened = open_model(bundle, progress=once(lambda: swap(bundle, evil)))
    elif moment == "before lint":
        checked = open_bundle(bundle)
        swap(bundle, evil)
        opened = open_model_of(checked)
    else:
        load = LlamaContext.open

        def late(*arguments: object, **options: object) -> LlamaContext:
            swap(bundle, evil)
            return load(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(LlamaContext, "open", late)
        opened = open_model(bundle)
    assert says(opened) == OURS


def open_model_of(bundle: Bundle) -> object:
    from boardfit.edge.engines.settings import EngineSettings
    from boardfit.edge.engines.target import OpenModel

    model, settings = bundle.model, EngineSettings.to_use(bundle.plan)
    engine = open_engine(bundle.plan.engine, model, settings)
    return OpenModel(bundle.name, bundle.path, engine, settings, bundle, model)


@pytest.mark.engine
def test_an_edit_in_place_while_it_loads_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = real_bundle(tmp_path / "kit")
    load = LlamaContext.open

    def late(*arguments: object, **options: object) -> LlamaContext:
        size = (bundle / "model.gguf").stat().st_size
        edit(bundle / "model.gguf", at=size - 1)
        return load(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LlamaContext, "open", late)
    with pytest.raises(IntegrityError, match="changed while it was loaded"):
        open_model(bundle)


@pytest.mark.engine
def test_an_edit_through_a_mapping_while_it_loads_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = real_bundle(tmp_path / "kit")
    load = LlamaContext.open
    with (bundle / "model.gguf").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        if not has_exact_ctime(file.fileno()):
            pytest.skip("a file system on which no time tells")
        mapped[-1] = mapped[-1]

        def late(*arguments: object, **options: object) -> LlamaContext:
            mapped[-1] ^= 1
            return load(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(LlamaContext, "open", late)
        with pytest.raises(IntegrityError, match="changed while it was loaded"):
            open_model(bundle)


@pytest.mark.engine
def test_a_new_link_or_mode_while_it_loads_is_no_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flash links files of the current release while it starts."""
    bundle = real_bundle(tmp_path / "kit")
    load = LlamaContext.open

    def late(*arguments: object, **options: object) -> LlamaContext:
        os.link(bundle / "model.gguf", tmp_path / "linked")
        return load(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LlamaContext, "open", late)
    assert says(open_model(bundle)) == OURS


@pytest.mark.engine
def test_messages_name_the_users_path(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "kit", {"model.gguf": b"no model at all"})
    with pytest.raises(InputError, match=r"kit/model\.gguf") as caught:
        open_model(bundle)
    assert "/proc/" not in str(caught.value)
    data = bytearray(scripted(tmp_path / "odd.gguf", OURS).read_bytes())
    at = data.index(b"output_norm.weight")
    data[at : at + 6] = b"outbut"
    (tmp_path / "odd.gguf").write_bytes(data)
    with pytest.raises(Exception, match=r"odd\.gguf") as failed:
        open_model(tmp_path / "odd.gguf")
    assert "/proc/" not in str(failed.value)


@pytest.mark.engine
def test_a_swapped_smaller_model_never_answers(tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    real_bundle(folder)
    scripted(folder / "small-model.gguf", "tiny")
    document = {
        "model": {"name": "real"}, "recipe": {"id": "q4_0"}, "plan": PLAN.to_dict(),
        "small": {"plan": PLAN.to_dict()},
    }  # fmt: skip
    seal_bundle(folder, document, {"model.gguf": "model", "small-model.gguf": SMALL}, {})
    bundle = open_bundle(folder)
    scripted(tmp_path / "evil.gguf", THEIRS).replace(folder / "small-model.gguf")
    assert bundle.small is not None
    model, plan = bundle.small
    with OpenModelOf(model) as text:
        assert text == "tiny"
    assert plan == PLAN


class OpenModelOf:
    """What one opened file answers."""

    def __init__(self, model: OpenedFile) -> None:
        self._engine = open_engine("llama_cpp", model, PLAN)

    def __enter__(self) -> str:
        from boardfit.edge.types import GenerationConfig

        events = self._engine.stream([ord("x")], GenerationConfig(max_tokens=8))
        return "".join(event.text for event in events)

    def __exit__(self, *_: object) -> None:
        self._engine.close()


# ---- what describes a bundle ---------------------------------------------------------------------


def test_what_is_packed_sent_and_signed_is_what_was_checked(tmp_path: Path, keys: Keys) -> None:
    from boardfit.converters.oci.artifact import bundle_layers
    from boardfit.edge.flash.transfer import wanted_files

    bundle = make_bundle(tmp_path / "kit", {"model.gguf": b"weights " * 4000})
    sign_bundle(bundle, keys[0])
    opened = open_bundle(bundle)
    before = wanted_files(opened)
    layers = bundle_layers(opened)
    for name in ("manifest.json", "SHA256SUMS", SIGNATURE):
        (bundle / name).write_bytes(b"{}")
    assert wanted_files(opened) == before and bundle_layers(opened) == layers
    assert before["manifest.json"][1] == opened.id


def test_packing_refuses_what_changed_since_it_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "kit", {"model.gguf": b"weights " * 4000, "a.bin": b"x"})
    open_bundle(bundle)
    edit(bundle / "model.gguf")
    with pytest.raises(IntegrityError):
        pack_bundle(bundle, tmp_path / "kit.tar")
    edit(bundle / "model.gguf")
    pack_bundle(bundle, tmp_path / "kit.tar")
    assert unpack_bundle(tmp_path / "kit.tar", tmp_path / "copy").id == open_bundle(bundle).id


def test_a_bundle_that_was_only_looked_at_is_verified_when_it_is_used(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "kit", {"model.gguf": b"weights " * 4000})
    bundle = open_bundle(folder, verify=False)
    edit(folder / "model.gguf")
    with pytest.raises(IntegrityError, match="sha256 is"):
        _ = bundle.model
    with pytest.raises(InputError, match="not listed"):
        bundle.open("../kit/model.gguf")


def test_a_bundle_opened_to_be_signed_is_not_run(
    tmp_path: Path, pinned: SigningKey, keys: Keys
) -> None:
    folder = make_bundle(tmp_path / "kit", {"model.gguf": b"weights " * 4000})
    with pytest.raises(IntegrityError, match="not signed"):
        _ = open_bundle(folder, check_signature=False).model
    sign_bundle(folder, keys[0])
    assert open_bundle(folder, check_signature=False).model.read(40_000)


# ---- folders -------------------------------------------------------------------------------------


def test_no_link_is_followed_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "file").write_bytes(b"x")
    (tmp_path / "out").write_bytes(b"secret")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "way").symlink_to(tmp_path / "in" / "deep")
    os.mkfifo(tmp_path / "in" / "pipe")
    folder = OpenedFolder(tmp_path / "in")
    assert folder.open("deep/file").read(10) == b"x"
    for name in ("link", "way/file"):
        with pytest.raises(UnsafeInputError, match="is a link"):
            folder.open(name)
    for name in ("pipe", "deep", "missing", "deep/missing"):
        with pytest.raises(InputError):
            folder.open(name)
    with pytest.raises(UnsafeInputError, match="more than the 3 bytes"):
        OpenedFile.open(tmp_path / "out").read(3)


def test_descriptors_are_closed_with_what_holds_them(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "kit", {"model.gguf": b"x" * 100, "b.bin": b"y", "c/d": b"z"})
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(50):
        opened = open_bundle(bundle)
        assert opened.model.open_beside("b.bin") is not None
        assert opened.model.open_beside("nothing") is None
    del opened
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after <= before
