"""Pull a bundle: download it to OUT.partial, verify every digest, and rename it.

An interrupted pull leaves `OUT.partial/bundle`, file by file. The same command resumes there.
"""

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from boardfit.converters.oci.artifact import (
    OciArtifact,
    OciLayer,
    check_against_bundle,
    check_config,
    parse_artifact,
)
from boardfit.converters.oci.registry import LEAST_BYTES_S, TOO_SLOW, TRIES, Registry, read_body
from boardfit.edge.bundle.bundle import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Bundle,
    open_bundle,
    parse_manifest,
)
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.rooted import Root, check_parent, work_beside
from boardfit.edge.errors import (
    DeviceUnreachableError,
    DoesNotFitError,
    EdgeError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UsageError,
)
from boardfit.edge.process.patience import LeastSpeed
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.trust.board_rules import Subject
from boardfit.edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE, accepting_key
from boardfit.edge.trust.host_floor import accept_pulled, refuse_pulled
from boardfit.edge.trust.ssh_formats import PublicKey
from boardfit.edge.units import MIB, format_bytes

_PAUSE_S = 0.5
_BUNDLE = "bundle"
#: Folders, journals.
_SLACK_BYTES = 4 * MIB


@dataclass
class Pulled:
    """`n_received` bytes came over the network; `n_there` were here: left by an interrupted pull,
    or in another file of the bundle.
    """

    reference: str
    digest: str
    bundle: str
    path: str
    n_bytes: int = 0
    n_received: int = 0
    n_there: int = 0
    signed_by: str | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "boardfit-pull", "schema": 1, **asdict(self)}


def pull(
    registry: Registry,
    output: Path,
    reporter: Reporter,
    keys: Sequence[PublicKey] = (),
    *,
    allow_older: bool = False,
) -> Pulled:
    """Bring the reference's bundle to `output`. With `keys` it must be signed by one of them, not
    expired, and no older than what was pulled before (but for `allow_older`), which is checked
    first. Raises UsageError when something else is at `output`, InputError when there is no such
    bundle, UnsafeInputError when it breaks a rule, DoesNotFitError when the disk is too small,
    IntegrityError when bytes or signatures are wrong, DeviceUnreachableError when the connection
    keeps breaking.
    """
    began_s, place = time.monotonic(), str(registry.reference)
    reporter.stage(f"asking {registry.reference.registry}")
    text = registry.manifest()
    digest = hashlib.sha256(text).hexdigest()
    if registry.reference.digest not in (None, f"sha256:{digest}"):
        raise IntegrityError(f"{place}: the registry answers with another manifest, {digest[:12]}…")
    artifact = parse_artifact(text, place)
    own = check_description(registry, artifact, keys, place)
    done = Pulled(place, f"sha256:{digest}", own.subject.id, str(output), artifact.n_bytes)
    if own.signer:
        done.signed_by = own.signer.fingerprint
        refuse_pulled(own.subject, own.signer, allow_older=allow_older)
    if output.exists():
        if not (output / MANIFEST).is_file() or open_bundle(output).id != own.subject.id:
            raise UsageError(f"{output} exists", next_step="remove it, or choose another folder")
        if keys:
            bring_signature(output, own, keys)
        if own.signer:
            accept_pulled(own.subject, own.signer)
        done.n_there = artifact.n_bytes
        done.seconds = time.monotonic() - began_s
        return done  # the same bundle, every byte of it
    check_parent(output)
    try:
        with work_beside(output, "pull", resume=True) as work:
            Receiver(registry, artifact, work.root, reporter, done).receive_all()
            open_bundle(work.path / "bundle", verify=False)
            work.publish("bundle")
    except EdgeError:
        raise  # some of them are OSErrors, too
    except OSError as error:
        raise disk_error(error, output) from error
    if own.signer:
        accept_pulled(own.subject, own.signer)
    done.seconds = time.monotonic() - began_s
    return done


@dataclass(frozen=True)
class Described:
    """What the small layers hold; `signer` is which of the requested keys signed the bundle."""

    subject: Subject
    signer: PublicKey | None
    manifest: bytes
    signature: bytes | None


def check_description(
    registry: Registry, artifact: OciArtifact, keys: Sequence[PublicKey], place: str
) -> Described:
    """Fetch config, manifest and signature, and compare them with the artifact."""
    config = small_blob(registry, artifact.config_sha256, artifact.config_n_bytes, "config")
    check_config(artifact, config, place)
    manifest_layer, signature_layer = artifact.layer(MANIFEST), artifact.layer(SIGNATURE)
    assert manifest_layer is not None
    manifest = small_layer(registry, manifest_layer, MAX_MANIFEST_BYTES)
    bundle: Bundle = parse_manifest(manifest, Path(registry.reference.repository))
    check_against_bundle(artifact, bundle, place)
    signature = (
        small_layer(registry, signature_layer, MAX_SIGNATURE_BYTES) if signature_layer else None
    )
    signer = accepting_key(manifest, signature, keys, "--key") if keys else None
    return Described(bundle.subject, signer, manifest, signature)


def bring_signature(output: Path, own: Described, keys: Sequence[PublicKey]) -> None:
    """Sign a bundle that is here as the registry's is, unless one of `keys` signed it already."""
    path = output / SIGNATURE
    try:
        here = OpenedFile.open(path).read(MAX_SIGNATURE_BYTES) if os.path.lexists(path) else None
        accepting_key(own.manifest, here, keys, "--key")
    except EdgeError:
        assert own.signature is not None  # one of the keys made it
        try:
            write_atomic(path, own.signature)
        except OSError as error:
            raise disk_error(error, output) from error


def small_layer(registry: Registry, layer: OciLayer, limit: int) -> bytes:
    if layer.n_bytes > limit:
        raise UnsafeInputError(f"{layer.path} has {layer.n_bytes} bytes; {limit} is the most")
    return small_blob(registry, layer.sha256, layer.n_bytes, layer.path)


def small_blob(registry: Registry, sha256: str, n_bytes: int, name: str) -> bytes:
    """A blob in memory, compared with its digest."""
    what = f"{registry.reference}: {name}"
    for attempt in range(1, TRIES + 1):
        try:
            with registry.blob(sha256) as response:
                registry.expect(response, 200)
                data = read_body(response, n_bytes, what)
            break
        except DeviceUnreachableError:
            if attempt == TRIES:
                raise
            time.sleep(_PAUSE_S)
    if len(data) != n_bytes or hashlib.sha256(data).hexdigest() != sha256:
        raise wrong_bytes(what)
    return data


def wrong_bytes(what: str) -> IntegrityError:
    return IntegrityError(
        f"{what} does not match its digest: the registry's copy is damaged or was exchanged",
        next_step="delete it in the registry, then push the bundle again from where it was built",
    )


class Receiver:
    """Brings every layer into `bundle/` below `root`."""

    def __init__(
        self,
        registry: Registry,
        artifact: OciArtifact,
        root: Root,
        reporter: Reporter,
        done: Pulled,
    ) -> None:
        self._registry, self._artifact, self._reporter = registry, artifact, reporter
        self._root, self._result = root, done
        # Bytes of whole layers, and of the one under way what was here already.
        self._n_done = self._n_kept = 0

    def receive_all(self) -> None:
        self._root.make_folder(_BUNDLE)
        self._drop_strangers()
        self._check_space()
        self._reporter.stage(f"receiving {format_bytes(self._artifact.n_bytes)}")
        for layer in self._artifact.layers:
            target = f"{_BUNDLE}/{layer.path}"
            self._root.make_folder(target.rpartition("/")[0])
            self._receive(layer, target)
            self._n_done += layer.n_bytes
            self._show(0)
        for name, info in self._root.walk(_BUNDLE):
            if stat.S_ISDIR(info.st_mode):
                self._root.sync(f"{_BUNDLE}/{name}")
        self._root.sync(_BUNDLE)

    def _drop_strangers(self) -> None:
        """What an earlier pull of something else has left in the same place."""
        paths = {layer.path for layer in self._artifact.layers}
        for name, info in list(self._root.walk(_BUNDLE)):
            if name not in paths and not stat.S_ISDIR(info.st_mode):
                self._root.remove(f"{_BUNDLE}/{name}")

    def _check_space(self) -> None:
        there = sum(info.st_size for _, info in self._root.walk("") if stat.S_ISREG(info.st_mode))
        needed = max(0, self._artifact.n_bytes - there) + _SLACK_BYTES
        free = shutil.disk_usage(self._root.path).free
        if free < needed:
            raise DoesNotFitError(
                f"{self._root.path} has {format_bytes(free)} free, the pull needs "
                f"{format_bytes(needed)}",
                shortfall_bytes=needed - free,
                next_step="make room, or pull to another disk",
            )

    def _size(self, path: str) -> int | None:
        """A file's bytes; None where there is no file."""
        info = self._root.stat(path)
        return info.st_size if info is not None and stat.S_ISREG(info.st_mode) else None

    def _show(self, n_bytes: int) -> None:
        """Report the whole layers, and `n_bytes` of the next."""
        total = self._artifact.n_bytes
        self._reporter.progress(min(self._n_done + n_bytes, total), total)

    def _receive(self, layer: OciLayer, target: str) -> None:
        """Make a file whole, from what is here of it and else from the registry."""
        twin = next(
            (x for x in self._artifact.layers if x.sha256 == layer.sha256 and x.path != layer.path
             and self._size(f"{_BUNDLE}/{x.path}") == x.n_bytes), None,
        )  # fmt: skip
        if twin is not None and self._size(target) is None:
            with self._root.open(f"{_BUNDLE}/{twin.path}") as old, self._root.create(target) as new:
                shutil.copyfileobj(old, new)
        for _ in range(2):
            self._fill(layer, target)
            if self._root.sha256(target) == layer.sha256:
                self._root.sync(target)
                self._result.n_there += self._n_kept
                return
            self._root.remove(target)
            if not self._n_kept:
                break  # it all came from the registry: once more would give the same
        raise wrong_bytes(f"{self._registry.reference}: {layer.path}")

    def _fill(self, layer: OciLayer, part: str) -> None:
        """Fetch until the part is whole. A broken connection is opened again while it helps."""
        if (have := self._size(part) or 0) > layer.n_bytes:
            self._root.remove(part)
            have = 0
        self._n_kept, failures = have, 0
        if layer.n_bytes == 0:
            self._root.resume(part).close()
        while have < layer.n_bytes:
            before = have
            problem = self._fetch(layer, part, have)
            have = self._size(part) or 0
            failures = 0 if have > before and problem != TOO_SLOW else failures + 1
            if have < layer.n_bytes and failures >= TRIES:
                raise DeviceUnreachableError(
                    f"{self._registry.reference}: the connection broke {TRIES} times at byte "
                    f"{have} of {layer.path}: {problem}",
                    next_step="run the same command again to resume",
                )
            if have < layer.n_bytes and failures:
                time.sleep(_PAUSE_S * failures)

    def _fetch(self, layer: OciLayer, part: str, have: int) -> str | None:
        """One request for the rest; what broke it, or None when the server closed it in order."""
        place = self._registry.reference
        with self._registry.blob(layer.sha256, have) as response:
            if response.status_code == 404:
                raise InputError(
                    f"{place}: the registry names {layer.path} and does not have it",
                    next_step="push the bundle again",
                )
            if response.status_code == 416:
                self._n_kept = 0
                self._root.remove(part)
                return "the registry refuses the range"
            self._registry.expect(response, 200, 206)
            if response.status_code == 206:
                content_range = response.headers.get("Content-Range", "")
                if not content_range.startswith(f"bytes {have}-"):
                    raise InputError(
                        f"{place.registry} was asked for bytes from {have} of {layer.path} and "
                        f"sends {content_range!r:.60}"
                    )
            else:  # it knows no ranges: everything comes, or comes again
                self._n_kept = have = 0
            with self._root.resume(part) as file:
                file.truncate(have)
                file.seek(have)
                speed = LeastSpeed(LEAST_BYTES_S)
                try:
                    # As it comes: what a full chunk waits for is lost when the connection breaks.
                    for chunk in response.iter_raw():
                        have += len(chunk)
                        if have > layer.n_bytes:
                            raise UnsafeInputError(
                                f"{place}: more bytes of {layer.path} come than the "
                                f"{layer.n_bytes} it should have"
                            )
                        file.write(chunk)
                        self._result.n_received += len(chunk)
                        self._show(have)
                        if not speed.add(len(chunk)):
                            return TOO_SLOW
                except httpx.HTTPError as error:
                    return str(error) or type(error).__name__
        return None


def disk_error(error: OSError, output: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFitError(
            f"{output}: the disk is full; what came so far is kept",
            next_step="make room, then run the same command again to resume",
        )
    return InputError(f"{output}: {error.strerror or error}", next_step="choose another folder")
