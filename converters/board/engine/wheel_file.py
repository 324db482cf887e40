"""Write a wheel. The same files give the same bytes at any time, on any machine.

Layout after https://packaging.python.org/en/latest/specifications/binary-distribution-format/.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's own first moment
_UNIX = 3  # create_system: file modes below are Unix ones, on every host


def wheel_name(name: str, version: str, tag: str, build: str | None = None) -> str:
    """`name-version[-build]-tag.whl`; `tag` is `py3-none-any` or the like."""
    return "-".join(part for part in (name, version, build, tag) if part) + ".whl"


def write_wheel(
    name: str,
    version: str,
    tag: str,
    metadata: str,
    files: Mapping[str, bytes],
    *,
    dist_info: Mapping[str, bytes] | None = None,
    build: str | None = None,
) -> bytes:
    """The bytes of a wheel with `files` (archive path → content) and `metadata` as METADATA.
    `dist_info` holds further files of the .dist-info folder (licences, entry_points.txt). `tag` may
    be compressed (`py3-none-a.b`); it is written out in WHEEL, one line per tag.
    """
    folder = f"{name}-{version}.dist-info"
    python, abi, platforms = tag.split("-")
    header = ["Wheel-Version: 1.0", "Generator: boardfit",
              f"Root-Is-Purelib: {'true' if platforms == 'any' else 'false'}"]  # fmt: skip
    if build:
        header.append(f"Build: {build}")
    header += [f"Tag: {python}-{abi}-{platform}" for platform in platforms.split(".")]
    entries = dict(sorted(files.items()))
    entries |= {f"{folder}/{n}": data for n, data in sorted((dist_info or {}).items())}
    entries[f"{folder}/METADATA"] = metadata.encode()
    entries[f"{folder}/WHEEL"] = ("\n".join(header) + "\n").encode()
    entries[f"{folder}/RECORD"] = make_record_file(entries.items(), f"{folder}/RECORD")
    return zip_bytes(entries)


def make_record_file(entries: Iterable[tuple[str, bytes]], own_name: str) -> bytes:
    """RECORD: path, urlsafe-base64 sha256 and size of every file; its own line is empty."""
    lines = []
    for path, data in entries:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    return ("".join(lines) + f"{own_name},,\n").encode()


def zip_bytes(entries: Mapping[str, bytes]) -> bytes:
    """A zip archive in the order given, with fixed times, modes and compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in entries.items():
            info = zipfile.ZipInfo(path, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = (0o100755 if path.endswith(".so") else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data, compresslevel=9)
    return buffer.getvalue()
