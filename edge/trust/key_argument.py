"""Keys as a user names them on a command line, and the passphrase that one may have."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.verified import config_directory
from boardfit.edge.errors import InputError
from boardfit.edge.trust.pins import MAX_KEYS, MAX_KEYS_BYTES
from boardfit.edge.trust.signing import AskPassphrase, SigningKey, load_signing_key
from boardfit.edge.trust.ssh_formats import ALGORITHM, PublicKey, parse_public_key

PASSPHRASE_VARIABLE = "BOARDFIT_KEY_PASSPHRASE"


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
