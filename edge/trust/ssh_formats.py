"""OpenSSH's public key lines and detached signatures, Ed25519 only.

    ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA… comment       RFC 4253 (6.6), RFC 8709
    -----BEGIN SSH SIGNATURE-----                       PROTOCOL.sshsig of OpenSSH

A signature states its namespace: that of a git commit never passes for one of a bundle.
"""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from boardfit.edge.errors import InputError, IntegrityError
from boardfit.edge.trust import ed25519
from boardfit.edge.units import printable

ALGORITHM = "ssh-ed25519"
MAX_SIGNATURES = 16
_MAGIC = b"SSHSIG"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_ARMOR = re.compile(re.escape(_BEGIN) + r"\n([A-Za-z0-9+/=\n]+)\n" + re.escape(_END) + r"\n?")
#: What `ssh-keygen -Y sign -O hashalg=` knows.
_HASHES = {"sha512": hashlib.sha512, "sha256": hashlib.sha256}


@dataclass(frozen=True)
class PublicKey:
    """32 bytes that name a signer; equal regardless of the comment."""

    raw: bytes
    comment: str = field(default="", compare=False)

    @property
    def blob(self) -> bytes:
        return _pack(ALGORITHM.encode(), self.raw)

    @property
    def fingerprint(self) -> str:
        """`SHA256:…`, as `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def line(self) -> str:
        text = f"{ALGORITHM} {base64.b64encode(self.blob).decode()}"
        return f"{text} {self.comment}" if self.comment else text

    def __str__(self) -> str:
        return f"{self.fingerprint} ({printable(self.comment, 60)})" if self.comment else (
            self.fingerprint
        )  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """One signature; nothing of it is verified yet."""

    key: PublicKey
    namespace: str
    hash_name: str
    raw: bytes

    def is_valid_for(self, message: bytes, namespace: str) -> bool:
        """Whether the key's owner made it over this message, for this purpose."""
        if self.namespace != namespace:
            return False
        return ed25519.verify(self.key.raw, signed_bytes(message, namespace, self.hash_name),
                              self.raw)  # fmt: skip

    def to_armor(self) -> str:
        blob = _MAGIC + struct.pack(">I", 1) + _pack(
            self.key.blob, self.namespace.encode(), b"", self.hash_name.encode(),
            _pack(ALGORITHM.encode(), self.raw),
        )  # fmt: skip
        text = base64.b64encode(blob).decode()
        lines = [text[i : i + 70] for i in range(0, len(text), 70)]
        return "\n".join([_BEGIN, *lines, _END]) + "\n"


def signed_bytes(message: bytes, namespace: str, hash_name: str = "sha512") -> bytes:
    """What Ed25519 is given to sign for a message."""
    digest = _HASHES[hash_name](message).digest()
    return _MAGIC + _pack(namespace.encode(), b"", hash_name.encode(), digest)


def parse_public_key(line: str) -> PublicKey:
    """One line of a `.pub` file. Raises InputError for anything but a usable Ed25519 key."""
    parts = line.strip().split(None, 2)
    shown = printable(line.strip(), 60)
    if len(parts) < 2 or parts[0] != ALGORITHM:
        raise InputError(
            f"not an Ed25519 public key: {shown!r}; expected one line: {ALGORITHM} AAAA… comment",
            next_step="edge key new makes a key; its .pub file holds that line",
        )
    try:
        algorithm, raw = _unpack(base64.b64decode(parts[1], validate=True), 2)
    except (ValueError, binascii.Error):
        raise InputError(f"public key {shown!r} is damaged", next_step="copy it again") from None
    if algorithm != ALGORITHM.encode() or not ed25519.is_valid_key(raw):
        raise InputError(f"public key {shown!r} is not a usable point of Ed25519's curve")
    return PublicKey(raw, printable(parts[2], 100) if len(parts) > 2 else "")


def parse_signatures(data: bytes) -> list[Signature]:
    """The signatures in a file. Raises IntegrityError for anything else in it."""
    try:
        text = data.decode("ascii").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise _unreadable("it is not text") from None
    found: list[Signature] = []
    at = 0
    while at < len(text):
        block = _ARMOR.match(text, at)
        if block is None or len(found) == MAX_SIGNATURES:
            raise _unreadable(f"{_BEGIN} … expected" if block is None else "too many of them")
        found.append(_parse_blob(block[1]))
        at = block.end()
    if not found:
        raise _unreadable("the file is empty")
    return found


def _parse_blob(text: str) -> Signature:
    try:
        blob = base64.b64decode(text.replace("\n", ""), validate=True)
        if blob[:10] != _MAGIC + struct.pack(">I", 1):
            raise ValueError("not version 1 of SSHSIG")
        key_blob, namespace, reserved, hash_name, inner = _unpack(blob[10:], 5)
        key_kind, raw_key = _unpack(key_blob, 2)
        kind, raw = _unpack(inner, 2)
        if (key_kind, kind) != (ALGORITHM.encode(),) * 2:
            raise ValueError("not made with an Ed25519 key")
        if reserved or hash_name.decode("ascii") not in _HASHES or len(raw_key) != 32:
            raise ValueError("of an unknown kind")
        return Signature(PublicKey(raw_key), namespace.decode("ascii"), hash_name.decode(), raw)
    except (ValueError, binascii.Error) as error:
        raise _unreadable(str(error)) from None


def _unreadable(why: str) -> IntegrityError:
    return IntegrityError(
        f"the signature cannot be read: {why}", next_step="sign again: edge bundle sign BUNDLE KEY"
    )


def _pack(*strings: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(s)) + s for s in strings)


def _unpack(data: bytes, count: int) -> Sequence[bytes]:
    """Exactly `count` length-prefixed strings. Raises ValueError for anything else."""
    found: list[bytes] = []
    for _ in range(count):
        if len(data) < 4:
            raise ValueError("cut short")
        (size,) = struct.unpack(">I", data[:4])
        if size > len(data) - 4:
            raise ValueError("cut short")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    if data:
        raise ValueError("something follows it")
    return found
