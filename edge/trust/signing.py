"""Make keys and signatures on the host, with `cryptography`, in constant time.

A private key is a PKCS8 PEM file that only its owner may read, or an OpenSSH private key. Ed25519
is deterministic: signing twice gives the same bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boardfit.edge.disk.atomic import fsync_directory, write_atomic
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.verified import config_directory
from boardfit.edge.errors import EngineMissingError, InputError, UnsafeInputError, UsageError
from boardfit.edge.requirements import install_line
from boardfit.edge.trust.bundle_signature import NAMESPACE
from boardfit.edge.trust.pins import MAX_KEYS, MAX_KEYS_BYTES
from boardfit.edge.trust.ssh_formats import (
    ALGORITHM,
    PublicKey,
    Signature,
    parse_public_key,
    signed_bytes,
)
from boardfit.edge.units import printable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: Asked for a passphrase when a key has one; None without a terminal.
AskPassphrase = Callable[[], str]
MAX_KEY_FILE_BYTES = 16 * 1024
PASSPHRASE_VARIABLE = "BOARDFIT_KEY_PASSPHRASE"


class SigningKey:
    def __init__(self, private: Ed25519PrivateKey, comment: str = "") -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw(), comment)

    def sign(self, message: bytes, namespace: str = NAMESPACE) -> Signature:
        raw = self._private.sign(signed_bytes(message, namespace))
        return Signature(self.public, namespace, "sha512", raw)


def new_key(path: Path, passphrase: str | None, comment: str) -> PublicKey:
    """Make a key: the private half at `path` (mode 0600), the public line at `path`.pub. Raises
    UsageError when one of them exists, EngineMissingError without `cryptography`.
    """
    serialization, ed25519 = _library()
    public_path = path.with_name(f"{path.name}.pub")
    for existing in (path, public_path):
        if os.path.lexists(existing):
            raise UsageError(f"{existing} exists", next_step="choose another file: --out FILE")
    private = ed25519.Ed25519PrivateKey.generate()
    guard = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, guard
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    public = PublicKey(private.public_key().public_bytes_raw(), comment)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fchmod(handle, 0o600)
            os.fsync(handle)
        write_atomic(public_path, f"{public.line}\n".encode())
    except BaseException as error:  # a full disk: half a key is no key
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    fsync_directory(path.parent)
    return public


def load_signing_key(path: Path, ask: AskPassphrase | None = None) -> SigningKey:
    """Read a private key; `ask` is called when it has a passphrase.

    Raises InputError for no Ed25519 private key and a wrong passphrase, UnsafeInputError when
    others may read the file, UsageError without a terminal to ask on, EngineMissingError.
    """
    serialization, ed25519 = _library()
    try:
        opened = OpenedFile.open(path)
        data, mode = opened.read(MAX_KEY_FILE_BYTES), opened.stat().st_mode
    except (InputError, OSError) as error:
        raise InputError(
            f"cannot read the signing key: {error}", next_step="edge key new makes one"
        ) from None
    if data.startswith(b"ssh-"):
        raise InputError(
            f"{path} is the public half of a key; signing takes the private one",
            next_step=f"--sign {path.with_suffix('')}",
        )
    if os.name == "posix" and mode & 0o077:
        raise UnsafeInputError(
            f"others may read the signing key {path} (mode {mode & 0o777:o})",
            next_step=f"chmod 600 {path}; if others could copy it, make a new one: edge key new",
        )
    is_ssh = b"OPENSSH PRIVATE KEY" in data
    load: Any = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    try:
        private = load(data, None)
    except TypeError:  # it has a passphrase
        private = _unlock(load, data, path, ask)
    except ValueError as error:
        raise InputError(
            f"{path} holds no private key: {printable(str(error), 100)}",
            next_step="edge key new makes one",
        ) from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise InputError(f"{path} is not an Ed25519 key", next_step="edge key new makes one")
    return SigningKey(private, _comment(path))


def _unlock(load: Any, data: bytes, path: Path, ask: AskPassphrase | None) -> Any:
    if ask is None:
        raise UsageError(
            f"{path} has a passphrase, and there is no terminal to ask for it",
            next_step="set BOARDFIT_KEY_PASSPHRASE, or run this in a terminal",
        )
    try:
        return load(data, ask().encode())
    except ValueError:
        raise InputError(f"that is not the passphrase of {path}") from None


def _comment(path: Path) -> str:
    try:
        line = path.with_name(f"{path.name}.pub").read_text(encoding="utf-8")[:1000]
    except (OSError, UnicodeDecodeError):
        return ""
    return printable(" ".join(line.split()[2:]), 100)


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise EngineMissingError(
            "keys are made and used through the Python package 'cryptography', which is not "
            "installed",
            next_step=install_line("host", "cryptography"),
        ) from None
    return serialization, ed25519


def default_key_path() -> Path:
    return config_directory() / "signing-key"


def public_keys(argument: str) -> tuple[PublicKey, ...]:
    """Read public keys from a key line or a file: a `.pub` or `trusted_keys` file, or a private
    key that has its `.pub` beside it. Raises InputError when there is none.
    """
    if argument.startswith(f"{ALGORITHM} "):
        return (parse_public_key(argument),)
    path = Path(argument)
    try:
        data = OpenedFile.open(path).read(MAX_KEYS_BYTES)
        if b"PRIVATE KEY" in data:
            path = path.with_name(f"{path.name}.pub")
            data = OpenedFile.open(path).read(MAX_KEYS_BYTES)
        text = data.decode("utf-8")
    except (InputError, OSError, UnicodeDecodeError) as error:
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InputError(
            f"cannot read a public key from {path}: {reason.removeprefix(f'{path}: ')}",
            next_step="give a .pub file (edge key new makes one), or the line in it",
        ) from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not 0 < len(lines) <= MAX_KEYS:
        raise InputError(f"{path} has {len(lines)} keys; expected 1 to {MAX_KEYS}")
    return tuple(dict.fromkeys(parse_public_key(line) for line in lines))


def signing_key(path: Path) -> SigningKey:
    """Load a private key, asking on the terminal for its passphrase where it has one."""
    return load_signing_key(path, passphrase_source(path))


def passphrase_source(path: Path) -> AskPassphrase | None:
    """Where a passphrase comes from: the environment, else the terminal, else nowhere."""
    if (known := os.environ.get(PASSPHRASE_VARIABLE)) is not None:
        return lambda: known
    if not sys.stdin.isatty():
        return None
    return lambda: str(click.prompt(f"Passphrase of {path}", hide_input=True, err=True))
