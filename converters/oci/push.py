"""Push a bundle to a registry; existing layers are not sent again."""

import hashlib
import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from boardfit.converters.oci.artifact import bundle_layers, make_config, make_manifest
from boardfit.converters.oci.registry import TRIES, Registry, redirect_target
from boardfit.edge.bundle.bundle import Bundle, bundle_signers
from boardfit.edge.errors import DeviceUnreachableError, InputError, IntegrityError, UsageError
from boardfit.edge.terminal.progress import Advance, Reporter
from boardfit.edge.units import MIB, format_bytes

#: Sent in pieces of this size, so that a broken connection costs one piece. A smaller blob goes in
#: one request.
CHUNK_BYTES = 64 * MIB
_READ = 1 << 20


@dataclass(frozen=True)
class Pushed:
    """`n_sent` bytes went over the network, `n_there` were in the registry already."""

    reference: str
    digest: str
    bundle: str
    n_bytes: int
    n_sent: int
    n_there: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "boardfit-push", "schema": 1, **asdict(self)}


def push(bundle: Bundle, registry: Registry, reporter: Reporter) -> Pushed:
    """Push an opened and verified bundle under the reference's tag. The manifest goes last: a tag
    never names something half there.

    Raises UsageError for a reference by digest, InputError when access is denied,
    DeviceUnreachableError when the registry does not answer, IntegrityError when it keeps something
    else than it was given.
    """
    if registry.reference.digest is not None or registry.reference.tag is None:
        raise UsageError("a push needs a tag, not a digest", next_step="registry/repository:tag")
    began_s = time.monotonic()
    layers = bundle_layers(bundle)
    signers = [key.fingerprint for key in bundle_signers(bundle)]
    config = make_config(bundle, layers)
    manifest = make_manifest(bundle, layers, config, signers)
    blobs: dict[str, tuple[Path | bytes, int]] = {
        layer.sha256: (bundle.texts.get(layer.path, bundle.path / layer.path), layer.n_bytes)
        for layer in layers
    }
    blobs[hashlib.sha256(config).hexdigest()] = (config, len(config))
    reporter.stage(f"asking {registry.reference.registry} what it has")
    missing = {sha: blob for sha, blob in blobs.items() if not registry.has_blob(sha, blob[1])}
    total = sum(n_bytes for _, n_bytes in missing.values())
    reporter.stage(f"sending {format_bytes(total)}")
    done = 0

    def progress(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        reporter.progress(min(done, total), total)

    for sha256, (source, n_bytes) in missing.items():
        upload(registry, sha256, source, n_bytes, progress)
    reporter.stage("naming it")
    registry.put_manifest(manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    if registry.manifest() != manifest:
        raise IntegrityError(
            f"{registry.reference} is not what was pushed: another push came in between, or the "
            "registry rewrites manifests",
            next_step=f"pull it by its digest: @sha256:{digest}",
        )
    there = sum(n_bytes for _, n_bytes in blobs.values()) - total
    return Pushed(
        str(registry.reference), f"sha256:{digest}", bundle.id, bundle.n_bytes, total, there,
        time.monotonic() - began_s,
    )  # fmt: skip


def upload(
    registry: Registry, sha256: str, source: Path | bytes, n_bytes: int, progress: Advance
) -> None:
    """Send one blob; after a broken connection, resume at the registry's offset."""
    file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with file:
        location, sent, failures = begin(registry), 0, 0
        while True:
            size = min(CHUNK_BYTES, n_bytes - sent)
            is_last = sent + size == n_bytes
            try:
                location = send_piece(
                    registry, location, file, sent, size, sha256 if is_last else None
                )
            except DeviceUnreachableError:
                failures += 1
                if failures >= TRIES:
                    raise
                location, kept = find_upload(registry, location)
                if kept > n_bytes:
                    raise InputError(
                        f"{registry.reference.registry} claims to have {kept} bytes of {n_bytes}"
                    ) from None
                progress(kept - sent)
                sent = kept
                continue
            progress(size)
            if is_last:
                return
            sent, failures = sent + size, 0


def begin(registry: Registry) -> str:
    """Open an upload; the address that its pieces go to."""
    headers = {"Content-Length": "0"}
    with registry.request("POST", registry.url("blobs/uploads/"), headers=headers) as response:
        registry.expect(response, 202)
        return next_location(registry, response.headers.get("Location"), registry.url(""))


def send_piece(
    registry: Registry, location: str, file: BinaryIO, start: int, n_bytes: int, sha256: str | None
) -> str:
    """Send `n_bytes` of a file from `start`; with `sha256` they are the last, and it is the digest
    of the whole. The address of the next piece.
    """
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(n_bytes)}
    method, url, code = "PATCH", location, 202
    if sha256 is not None:
        separator = "&" if "?" in location else "?"
        method, url, code = "PUT", f"{location}{separator}digest=sha256:{sha256}", 201
    if start or sha256 is None:
        headers["Content-Range"] = f"{start}-{start + n_bytes - 1}"
    content = lambda: piece(file, start, n_bytes)  # noqa: E731  # read anew after a 401
    with registry.request(method, url, headers=headers, content=content, retry=False) as response:
        registry.expect(response, code)
        if sha256 is None:
            return next_location(registry, response.headers.get("Location"), location)
        stored = response.headers.get("Docker-Content-Digest", f"sha256:{sha256}")
        if stored != f"sha256:{sha256}":
            raise IntegrityError(f"{registry.reference.registry} stored {stored!r:.90} instead")
        return location


def find_upload(registry: Registry, location: str) -> tuple[str, int]:
    """An upload's address now, and the bytes kept of it. A forgotten one begins anew."""
    with registry.request("GET", location) as response:
        if response.status_code == 404:
            return begin(registry), 0
        registry.expect(response, 204)
        first, _, last = response.headers.get("Range", "0-0").removeprefix("bytes=").partition("-")
        if first != "0" or not re.fullmatch("[0-9]{1,18}", last):
            raise InputError(f"{registry.reference.registry} does not report how far an upload is")
        kept = int(last) + 1 if last != "0" else 0
        return next_location(registry, response.headers.get("Location"), location), kept


def next_location(registry: Registry, location: str | None, url: str) -> str:
    if not location:
        raise InputError(f"{registry.reference.registry} does not report where an upload goes")
    return redirect_target(url, location)


def piece(file: BinaryIO, start: int, n_bytes: int) -> Iterator[bytes]:
    """`n_bytes` of a file from `start`. Raises IntegrityError when it has become shorter. The
    file's own position is left alone: a request that was given up may still read.
    """
    while n_bytes > 0:
        size = min(_READ, n_bytes)
        if isinstance(file, io.BytesIO):
            chunk = file.getvalue()[start : start + size]
        else:
            chunk = os.pread(file.fileno(), size, start)
        if not chunk:
            raise IntegrityError("a file of the bundle became shorter while it was sent")
        start, n_bytes = start + len(chunk), n_bytes - len(chunk)
        yield chunk
