"""The bundle: one directory that leaves the host, holding a model and everything decided about it.

    manifest.json        what it is: model, source, recipe, plan, checks; sizes and sha256 of files
    model.gguf           the artifact (role "model"); further files: template, licence, model card
    SHA256SUMS           the same hashes for `sha256sum -c`, manifest included
    manifest.json.sig    optional: who vouches for the manifest, and with it for every file

The id is the sha256 of `manifest.json`. Reading trusts nothing: paths are plain, there are no links
and no unknown files, sizes are checked before hashes, and hashes before use. The folder is opened
once, and so is every file: `Bundle.open` gives the very file whose hash was checked.
"""

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from boardfit.edge.bundle.tar import BLOCK, TarWriter, is_tar, read_entries
from boardfit.edge.disk.atomic import fsync_directory, new_file, write_atomic
from boardfit.edge.disk.opened_file import OpenedFile, OpenedFolder
from boardfit.edge.disk.rooted import Root, check_free, work_beside
from boardfit.edge.disk.verified import VerifiedFiles
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UnsafeInputError
from boardfit.edge.fields import FieldKind, OneOf, Schema, Whole, check_fields
from boardfit.edge.terminal.progress import Advance, Progress
from boardfit.edge.trust.board_rules import Subject
from boardfit.edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE, signers
from boardfit.edge.trust.pins import check_pins, check_rules
from boardfit.edge.trust.release import ReleaseTerms, read_release
from boardfit.edge.trust.ssh_formats import PublicKey
from boardfit.edge.types import Plan
from boardfit.edge.units import printable

SCHEMA = 1
KIND = "boardfit-bundle"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
# "model" is the file the engine is given; "part" a file that belongs to it (external data of ONNX).
# "wheel" to "tool" are what an offline bundle adds for the board: see converters/offline.
# "small" is a second, smaller model of the same board, for when time is short: edge/bundle/pair.py.
SMALL = "small"
ROLES = (
    *("model", SMALL, "part", "tokenizer", "template", "license", "card", "prefix"),
    *("wheel", "launcher", "unit", "tool"),
)

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_FILES = 1000
_CHUNK = 1 << 20
#: Roles of files that are used from here on, and are held open; the others are not read, or only by
#: programs of the board. The number is limited: a process may have 256 or 1024 files open.
_USED = ("model", SMALL, "part", "tokenizer", "template", "prefix")
_MAX_HELD = 32
# Plain relative POSIX names: nothing hidden, nothing a shell or a FAT card would stumble over.
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_FIELDS: Schema = {
    "role": OneOf(ROLES),
    "n_bytes": Whole(),
    "sha256": FieldKind("64 hex digits", lambda v: isinstance(v, str) and _SHA256.fullmatch(v)),
}


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: relative name, role, size in bytes, lower-case hex sha256."""

    name: str
    role: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `texts` are the bytes of what describes it, as they were checked."""

    path: Path
    id: str
    manifest: Mapping[str, Any]
    plan: Plan
    files: tuple[BundleFile, ...]
    texts: Mapping[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    _folder: OpenedFolder | None = field(default=None, compare=False, repr=False)
    _held: dict[str, OpenedFile] = field(default_factory=dict, compare=False, repr=False)
    _is_admitted: bool = field(default=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        return str(self.manifest["model"]["name"])

    @property
    def release(self) -> ReleaseTerms:
        return read_release(self.manifest, str(self.path / MANIFEST))

    @property
    def subject(self) -> Subject:
        return Subject(self.id, self.name, str(self.plan.device), self.release)

    @property
    def model_path(self) -> Path:
        return self.path / self.model_file.name

    @property
    def model_file(self) -> BundleFile:
        return next(file for file in self.files if file.role == "model")

    @property
    def model(self) -> OpenedFile:
        """The model, opened and verified, for an engine. Raises like `open`."""
        return self.open(self.model_file.name)

    @property
    def small(self) -> tuple[OpenedFile, Plan] | None:
        """The smaller model beside the model, and its plan; None where there is only one."""
        found = next((file for file in self.files if file.role == SMALL), None)
        if found is None:
            return None
        return self.open(found.name), Plan.from_dict(self.manifest["small"]["plan"])

    @property
    def prefixes(self) -> tuple[OpenedFile, ...]:
        """Saved states of system prompts."""
        return tuple(self.open(file.name) for file in self.files if file.role == "prefix")

    @property
    def signature(self) -> bytes | None:
        """The signature file, as it was when the bundle was opened."""
        return self.texts.get(SIGNATURE)

    def open(self, name: str) -> OpenedFile:
        """The file called `name`, held open, its hash checked through the same descriptor. Its
        `beside` finds others. Raises InputError when it is none of the bundle's, IntegrityError
        when its content differs, or when keys are pinned and none of them signed the bundle.
        """
        file = next((file for file in self.files if file.name == name), None)
        if file is None:
            raise InputError(f"{self.path}: {printable(name)} is not listed in the manifest")
        if not self._is_admitted and check_pins(self.path, self.texts[MANIFEST], self.signature):
            check_rules(self.path, self.subject)
        opened = self._held.get(name)
        if opened is None:
            opened = self._open_verified(file, None, None)
        folder = name.rpartition("/")[0]

        def beside(other: str) -> OpenedFile | None:
            wanted = f"{folder}/{other}" if folder else other
            return self.open(wanted) if any(f.name == wanted for f in self.files) else None

        return opened.replace(beside=beside)

    def _open_verified(
        self, file: BundleFile, remembered: VerifiedFiles | None, progress: Advance | None
    ) -> OpenedFile:
        """Open a file and hash it, unless it is `remembered`; hold it if it is one to be used."""
        assert self._folder is not None
        opened = self._folder.open(file.name)
        if remembered is None or not remembered.is_known(opened, file.sha256):
            digest = remembered.verify(opened, progress) if remembered else opened.digest(progress)
            if digest != file.sha256:
                raise IntegrityError(
                    f"{opened}: sha256 is {digest[:16]}…, the manifest states "
                    f"{file.sha256[:16]}…: it was edited or damaged",
                    next_step="copy or build the bundle again",
                )
        opened = opened.replace(sha256=file.sha256)
        if file.role in _USED and len(self._held) < _MAX_HELD:
            self._held[file.name] = opened
        return opened

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)


def sha256_file(path: Path) -> str:
    return OpenedFile.open(path).digest()


def seal_bundle(
    directory: Path,
    manifest: Mapping[str, Any],
    roles: Mapping[str, str],
    hashes: Mapping[str, str],
) -> str:
    """Write `manifest.json` and `SHA256SUMS` over the files in `directory`, and return the
    bundle id. `roles` are by relative name; `hashes` may hold sha256 sums known from writing.
    """
    files = {}
    for name in sorted(roles):
        check_name(name)
        path = directory / name
        digest = hashes.get(name) or sha256_file(path)
        files[name] = {"role": roles[name], "n_bytes": path.stat().st_size, "sha256": digest}
    document = {"kind": KIND, "schema": SCHEMA, **manifest, "files": files}
    for name in files:
        with (directory / name).open("rb") as file:
            os.fsync(file.fileno())
    return hashlib.sha256(write_manifest(directory, document)).hexdigest()


def write_manifest(directory: Path, document: Mapping[str, Any]) -> bytes:
    """Write `manifest.json`, which it returns, and SHA256SUMS; remove an earlier signature."""
    text = (
        json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()
    write_atomic(directory / MANIFEST, text)
    bundle_id = hashlib.sha256(text).hexdigest()
    (directory / SIGNATURE).unlink(missing_ok=True)  # of another manifest
    sums = [f"{entry['sha256']}  {name}" for name, entry in document["files"].items()]
    sums.append(f"{bundle_id}  {MANIFEST}")
    write_atomic(directory / SUMS, ("\n".join(sums) + "\n").encode())
    fsync_directory(directory)
    return text


def open_bundle(
    path: str | Path,
    *,
    verify: bool | None = None,
    progress: Progress | None = None,
    check_signature: bool = True,
) -> Bundle:
    """Open a bundle directory and check names, links, unknown files and sizes.

    `verify=True` hashes every byte; `None` files that have changed since they were last verified
    here (by size, inode, mtime and ctime); `False` none until a file is used. `progress(done,
    total)` counts hashed bytes. Where keys are pinned (`boardfit.edge.trust.pins`) the bundle must
    be signed by one of them and keep the board's rules, and all is verified anew; a tool that only
    looks, or signs, asks for no `check_signature`.

    Raises InputError when it is no bundle, UnsafeInputError when it breaks a rule, IntegrityError
    when a size or hash differs, or when no accepted key signed it.
    """
    root = Path(path)
    if root.is_file() and is_tar(OpenedFile.open(root).reader().read(BLOCK)):
        raise InputError(
            f"{root} is a packed bundle; it has to be unpacked before use",
            next_step=f"edge bundle unpack {root} -o {root.with_suffix('')}",
        )
    if not (root / MANIFEST).is_file():
        raise InputError(
            f"{root} is not a bundle: there is no {MANIFEST} in it"
            if root.exists()
            else f"there is no bundle at {root}",
            next_step="edge build MODEL --device BOARD -o OUT makes one",
        )
    folder = OpenedFolder(root)
    texts = read_texts(folder)
    keys = []
    if check_signature:  # before any of its content is believed
        keys = check_pins(root, texts[MANIFEST], texts.get(SIGNATURE))
    bundle = replace(
        parse_manifest(texts[MANIFEST], root),
        texts=texts,
        _folder=folder,
        _is_admitted=check_signature,
    )
    if keys:
        check_rules(root, bundle.subject)
    check_tree(folder, bundle.files)
    check_sums(bundle)
    if verify is not False:
        verify_files(bundle, VerifiedFiles() if verify is None and not keys else None, progress)
    return bundle


def read_texts(folder: OpenedFolder) -> dict[str, bytes]:
    """What describes a bundle: its manifest and, as far as they are there, sums and signature."""
    limits = {
        MANIFEST: MAX_MANIFEST_BYTES, SUMS: MAX_MANIFEST_BYTES, SIGNATURE: MAX_SIGNATURE_BYTES,
    }  # fmt: skip
    files = {name: folder.find(name) for name in limits} | {MANIFEST: folder.open(MANIFEST)}
    return {name: file.read(limits[name]) for name, file in files.items() if file is not None}


def bundle_signers(bundle: Bundle) -> list[PublicKey]:
    """The keys that signed an opened bundle. Raises IntegrityError for a signature of another
    manifest.
    """
    return signers(bundle.texts[MANIFEST], bundle.signature)


def parse_manifest(text: bytes, root: Path) -> Bundle:
    """Parse and check a manifest. Raises InputError or UnsafeInputError naming the entry."""
    place = root / MANIFEST
    try:
        document = json.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError(f"{place}: this is not a boardfit bundle's manifest")
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{place}: bundle schema {document.get('schema')!r}, this boardfit reads {SCHEMA}",
            next_step="use the boardfit version that built it, or build it again",
        )
    for key in ("model", "plan", "recipe", "files"):
        if not isinstance(document.get(key), dict):
            raise InputError(f"{place}: entry {key!r} is missing or not an object")
    if not isinstance(document["model"].get("name"), str):
        raise InputError(f"{place}: entry 'model.name' is missing or not a string")
    files = tuple(parse_file(name, entry) for name, entry in document["files"].items())
    if len(files) > MAX_FILES:
        raise UnsafeInputError(f"{place}: {len(files)} files; {MAX_FILES} is the most")
    roles = [file.role for file in files]
    if roles.count("model") != 1:
        raise InputError(f"{place}: exactly one file must have the role 'model'")
    small = document.get("small")
    if roles.count(SMALL) != (small is not None) or not isinstance(small or {}, dict):
        raise InputError(f"{place}: entry 'small' and a file of that role go together")
    if small is not None:
        if not isinstance(small.get("plan"), dict):
            raise InputError(f"{place}: entry 'small.plan' is missing or not an object")
        Plan.from_dict(small["plan"])
    read_release(document, str(place))
    plan = Plan.from_dict(document["plan"])
    return Bundle(root, hashlib.sha256(text).hexdigest(), document, plan, files)


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def check_name(name: str) -> None:
    """Raise UnsafeInputError unless `name` is a plain relative path inside the bundle."""
    if len(name) > 255 or not _NAME.fullmatch(name) or name in (MANIFEST, SUMS, SIGNATURE):
        raise UnsafeInputError(f"bundle file name {printable(name)!r} is not allowed")


def parse_file(name: str, entry: Any) -> BundleFile:
    check_name(name)
    check_fields(entry, _FILE_FIELDS, f"bundle file {name}", required=frozenset(_FILE_FIELDS))
    return BundleFile(name, **entry)


def check_tree(opened: OpenedFolder, files: tuple[BundleFile, ...]) -> None:
    """The directory holds exactly the listed files, all regular, all of the stated size."""
    root = opened.path
    expected = {file.name: file for file in files}
    parents = {str(parent) for name in expected for parent in Path(name).parents}
    seen = set()
    for folder, folders, names, number in os.fwalk(".", dir_fd=opened.fileno()):
        for name in folders + names:
            shown = (Path(folder) / name).as_posix()
            info = os.stat(name, dir_fd=number, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode) and shown in parents:
                continue
            if shown in (MANIFEST, SUMS, SIGNATURE) and stat.S_ISREG(info.st_mode):
                continue
            if shown not in expected or not stat.S_ISREG(info.st_mode):
                what = "a link" if stat.S_ISLNK(info.st_mode) else "not listed in the manifest"
                raise UnsafeInputError(f"{root}: {printable(shown)} is {what}")
            if info.st_size != expected[shown].n_bytes:
                raise IntegrityError(
                    f"{root}: {shown} has {info.st_size} bytes, the manifest states "
                    f"{expected[shown].n_bytes}",
                    next_step="copy or build the bundle again",
                )
            seen.add(shown)
    if missing := sorted(set(expected) - seen):
        raise IntegrityError(f"{root}: {missing[0]} is missing", next_step="copy the bundle again")


def check_sums(bundle: Bundle) -> None:
    """SHA256SUMS repeats the manifest; a bundle whose two lists differ was edited."""
    root = bundle.path
    expected = {file.sha256 + "  " + file.name for file in bundle.files}
    expected.add(f"{bundle.id}  {MANIFEST}")
    if SUMS not in bundle.texts:
        raise IntegrityError(f"{root}: {SUMS} is missing", next_step="copy the bundle again")
    got = set(bundle.texts[SUMS].decode("utf-8", "replace").splitlines())
    if got != expected:
        raise IntegrityError(
            f"{root}: {MANIFEST} and {SUMS} do not agree: one of them was edited",
            next_step="copy or build the bundle again",
        )


def verify_files(
    bundle: Bundle, remembered: VerifiedFiles | None, progress: Progress | None
) -> None:
    """Hash every file (but those that `remembered` knows unchanged) against the manifest."""
    folder, done = bundle._folder, 0
    assert folder is not None
    total = sum(
        file.n_bytes
        for file in bundle.files
        if remembered is None or not remembered.is_known(folder.open(file.name), file.sha256)
    )

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress(done, total)

    for file in bundle.files:
        bundle._open_verified(file, remembered, count)
    if remembered is not None and done:
        remembered.save()


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle's files and no others, damaged or not: it may be replaced."""
    try:
        with Root(folder) as root:
            with root.open(MANIFEST) as file:
                files = parse_manifest(file.read(MAX_MANIFEST_BYTES), folder).files
            known = {MANIFEST, SUMS, SIGNATURE, *(file.name for file in files)}
            return all(stat.S_ISDIR(info.st_mode) or n in known for n, info in root.walk(""))
    except (OSError, EdgeError):
        return False


def pack_bundle(directory: Path, tar_path: Path) -> int:
    """Pack a verified bundle into a tar, the same bytes for the same bundle, and return its
    size. Raises UsageError when the output exists.
    """
    bundle = open_bundle(directory, verify=False, check_signature=False)
    check_free(tar_path)
    with new_file(tar_path) as packed:
        archive = TarWriter(packed)
        for name in (MANIFEST, SUMS, SIGNATURE):
            if (text := bundle.texts.get(name)) is not None:
                archive.add(name, len(text), io.BytesIO(text))
        for file in sorted(bundle.files, key=lambda file: file.name):
            with bundle._open_verified(file, None, None).reader() as content:
                archive.add(file.name, file.n_bytes, content)
        archive.close()
    return tar_path.stat().st_size


def unpack_bundle(tar_path: Path, directory: Path) -> Bundle:
    """Unpack a bundle beside `directory`, verify every byte, then rename it into place. Raises
    UnsafeInputError for names and kinds that are not allowed, UsageError when `directory`
    exists.
    """
    check_free(directory)
    opened = OpenedFile.open(tar_path)
    with work_beside(directory, "unpack") as work:
        extract_plain_files(opened, work.root, "bundle")
        open_bundle(work.path / "bundle", verify=True)
        work.publish("bundle")
    return open_bundle(directory, verify=False)


def extract_plain_files(packed: OpenedFile, root: Root, folder: str) -> None:
    root.make_folder(folder)
    with packed.reader() as archive:
        size, most = packed.stat().st_size, 2 * MAX_FILES
        for entry in read_entries(archive, size, printable(str(packed)), most):
            name = entry.name.removeprefix("./")  # `tar -C KIT .` writes it
            if entry.is_folder and name in ("", "."):
                continue
            if name not in (MANIFEST, SUMS, SIGNATURE):
                check_name(name)
            target = f"{folder}/{name}"
            if entry.is_folder:
                root.make_folder(target)
                continue
            if root.stat(target) is not None:
                raise UnsafeInputError(f"{packed}: {printable(name)} is in it twice")
            root.make_folder(target.rpartition("/")[0])
            with root.create(target) as file:
                _copy_exactly(archive, file, entry.n_bytes)
                file.flush()
                os.fsync(file.fileno())


def _copy_exactly(source: BinaryIO, target: BinaryIO, n_bytes: int) -> None:
    while n_bytes and (chunk := source.read(min(n_bytes, _CHUNK))):
        target.write(chunk)
        n_bytes -= len(chunk)
