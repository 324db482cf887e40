"""Keys and signatures in OpenSSH's formats, with OpenSSH itself as the other side."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.errors import InputError, IntegrityError
from boardfit.edge.trust.bundle_signature import NAMESPACE, accepting_key, signers
from boardfit.edge.trust.signing import SigningKey, load_signing_key
from boardfit.edge.trust.ssh_formats import MAX_SIGNATURES, parse_public_key, parse_signatures
from tests.programs import find, require

MESSAGE = b'{"kind": "boardfit-bundle"}\n'


@pytest.fixture
def ssh_keygen() -> str:
    require("ssh-keygen")
    return find("ssh-keygen") or ""


def ssh_verify(program: str, folder: Path, key: SigningKey, namespace: str) -> bool:
    (folder / "allowed").write_text(f"builder {key.public.line}\n")
    done = subprocess.run(
        [program, "-Y", "verify", "-f", folder / "allowed", "-I", "builder", "-n", namespace,
         "-s", folder / "sig"],
        input=MESSAGE, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


def test_openssh_verifies_what_we_sign(
    ssh_keygen: str, tmp_path: Path, keys: tuple[SigningKey, SigningKey]
) -> None:
    one, two = keys
    # Two signers in one file: ssh-keygen looks at the first.
    text = one.sign(MESSAGE).to_armor() + two.sign(MESSAGE).to_armor()
    (tmp_path / "sig").write_text(text)
    assert ssh_verify(ssh_keygen, tmp_path, one, NAMESPACE)
    assert not ssh_verify(ssh_keygen, tmp_path, two, NAMESPACE)
    assert not ssh_verify(ssh_keygen, tmp_path, one, "git")
    assert signers(MESSAGE, text.encode()) == [one.public, two.public]


@pytest.mark.parametrize("hash_name", ["sha512", "sha256"])
@pytest.mark.parametrize("passphrase", ["", "a passphrase"])
def test_we_verify_what_openssh_signs_and_read_its_keys(
    ssh_keygen: str, tmp_path: Path, hash_name: str, passphrase: str
) -> None:
    path, message = tmp_path / "id", tmp_path / "message"
    subprocess.run(
        [ssh_keygen, "-q", "-t", "ed25519", "-N", passphrase, "-C", "a comment", "-f", path],
        check=True,
    )
    message.write_bytes(MESSAGE)
    key = load_signing_key(path, lambda: passphrase)
    assert key.public == parse_public_key((tmp_path / "id.pub").read_text())
    shown = subprocess.run(
        [ssh_keygen, "-l", "-f", f"{path}.pub"], capture_output=True, text=True, check=True
    ).stdout
    assert key.public.fingerprint == shown.split()[1]
    if not passphrase:  # ssh-keygen would ask for it
        subprocess.run(
            [ssh_keygen, "-Y", "sign", "-q", "-f", path, "-n", NAMESPACE, "-O",
             f"hashalg={hash_name}", message],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        data = (tmp_path / "message.sig").read_bytes()
        assert signers(MESSAGE, data) == [key.public]
        assert key.public.comment == "a comment"
        if hash_name == "sha512":
            assert data == key.sign(MESSAGE).to_armor().encode()


def test_a_signature_made_for_something_else_is_refused(
    keys: tuple[SigningKey, SigningKey],
) -> None:
    for_git = keys[0].sign(MESSAGE, "git").to_armor().encode()
    with pytest.raises(IntegrityError, match="made for 'git'"):
        signers(MESSAGE, for_git)
    with pytest.raises(IntegrityError, match="made for 'git'"):
        accepting_key(MESSAGE, for_git, [keys[0].public], "the board")
    # Renaming the purpose in the file does not help: it is part of what was signed.
    relabelled = for_git.decode().replace("\n", "").removeprefix("-----BEGIN SSH SIGNATURE-----")
    blob = base64.b64decode(relabelled.removesuffix("-----END SSH SIGNATURE-----"))
    name = NAMESPACE.encode()
    blob = blob.replace(b"\0\0\0\3git", len(name).to_bytes(4, "big") + name)
    text = "-----BEGIN SSH SIGNATURE-----\n" + base64.b64encode(blob).decode()
    with pytest.raises(IntegrityError, match="edited after"):
        signers(MESSAGE, (text + "\n-----END SSH SIGNATURE-----\n").encode())


def test_who_signed_and_who_did_not(keys: tuple[SigningKey, SigningKey]) -> None:
    one, two = keys
    data = one.sign(MESSAGE).to_armor().encode()
    assert accepting_key(MESSAGE, data, [two.public, one.public], "the board") == one.public
    with pytest.raises(IntegrityError, match=r"signed by SHA256.*the board accepts only"):
        accepting_key(MESSAGE, data, [two.public], "the board")
    with pytest.raises(IntegrityError, match="is not signed"):
        accepting_key(MESSAGE, None, [two.public], "the board")
    with pytest.raises(IntegrityError, match="edited after it was signed"):
        accepting_key(MESSAGE + b" ", data, [one.public], "the board")
    with pytest.raises(IntegrityError, match="no key at all"):
        accepting_key(MESSAGE, data, [], "the board")


def test_too_many_and_empty_signature_files(keys: tuple[SigningKey, SigningKey]) -> None:
    block = keys[0].sign(MESSAGE).to_armor().encode()
    assert len(parse_signatures(block * MAX_SIGNATURES)) == MAX_SIGNATURES
    for data in (block * (MAX_SIGNATURES + 1), b"", b"\n", block[:-30], block + b"x", b"\xff"):
        with pytest.raises(IntegrityError, match="cannot be read"):
            parse_signatures(data)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_blob_in_an_armor_is_read_or_refused(blob: bytes) -> None:
    for body in (blob, b"SSHSIG\0\0\0\1" + blob):
        text = base64.b64encode(body).decode()
        data = f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n".encode()
        with pytest.raises(IntegrityError):
            parse_signatures(data)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=120), st.binary(max_size=80)))
def test_any_line_is_a_key_or_refused(line: str | bytes) -> None:
    if isinstance(line, bytes):
        line = f"ssh-ed25519 {base64.b64encode(line).decode()}"
    with pytest.raises(InputError):
        parse_public_key(line)


@pytest.mark.parametrize(
    "line",
    [
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7 me",
        # The neutral element: anybody can sign with it.
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "ssh-ed25519",
        "ecdsa-sha2-nistp256 AAAA me",
    ],
)
def test_other_keys_are_refused(line: str) -> None:
    with pytest.raises(InputError):
        parse_public_key(line)


def test_a_line_survives_a_round_trip(keys: tuple[SigningKey, SigningKey]) -> None:
    public = keys[0].public
    again = parse_public_key(f"  {public.line}\r\n")
    assert (again, again.comment) == (public, "one")
