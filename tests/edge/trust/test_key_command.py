"""`edge key`, `edge bundle sign|verify`, `edge build --sign`: as a user types them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.edge.bundle.bundle import bundle_signers, open_bundle
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.cli import edge
from boardfit.edge.errors import (
    InputError,
    IntegrityError,
    UnsafeInputError,
    UsageError,
)
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.trust.pins import TRUSTED_KEYS
from boardfit.edge.trust.signing import SigningKey, load_signing_key
from tests.edge.flash.boards import SshBoard
from tests.edge.flash.conftest import need

Keys = tuple[SigningKey, SigningKey]


def call(*arguments: str | Path, **options: Any) -> str:
    """Run `edge …` in this process; its standard output. Raises what it raises."""
    result = CliRunner().invoke(
        edge, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False, **options
    )
    return result.stdout


def test_a_new_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    made = json.loads(call("key", "new", "--out", tmp_path / "k", "--name", "a b", "--json"))
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert (tmp_path / "k.pub").read_text().strip() == made["line"] and made["name"] == "a-b"
    assert (tmp_path / "k").read_text().startswith("-----BEGIN PRIVATE KEY-----")
    before = (tmp_path / "k").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        call("key", "new", "--out", tmp_path / "k")
    (tmp_path / "k.pub").unlink()
    with pytest.raises(UsageError, match="exists"):
        call("key", "new", "--out", tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == before


def test_the_default_place_is_the_users_configuration(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(InputError, match="cannot read the signing key"):
        call("bundle", "sign", bundle)
    call("key", "new")
    call("bundle", "sign", bundle)
    shown = json.loads(call("key", "show", "--json"))
    verified = json.loads(call("bundle", "verify", bundle, "--json"))
    assert verified["signed_by"] == [shown["fingerprint"]]


def test_a_passphrase_guards_the_key(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_KEY_PASSPHRASE", "horse")
    call("key", "new", "--out", tmp_path / "k", "--passphrase")
    assert (tmp_path / "k").read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    call("bundle", "sign", bundle, tmp_path / "k")
    monkeypatch.setenv("BOARDFIT_KEY_PASSPHRASE", "donkey")
    with pytest.raises(InputError, match="not the passphrase"):
        call("bundle", "sign", bundle, tmp_path / "k")
    monkeypatch.delenv("BOARDFIT_KEY_PASSPHRASE")
    with pytest.raises(UsageError, match="no terminal to ask for it"):  # and never hangs
        call("bundle", "sign", bundle, tmp_path / "k")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, keys: Keys, mode: int) -> None:
    (tmp_path / "one").chmod(mode)
    with pytest.raises(UnsafeInputError, match="others may read"):
        load_signing_key(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("public half", b"ssh-ed25519 AAAA x\n"),
        ("no private key", b"not a key\n"),
        ("no private key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ("no private key", b""),
    ],
)
def test_what_is_no_private_key(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "bad").write_bytes(data)
    (tmp_path / "bad").chmod(0o600)
    with pytest.raises(InputError, match=name):
        load_signing_key(tmp_path / "bad")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    pem = X25519PrivateKey.generate().private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()
    )
    (tmp_path / "x").write_bytes(pem)
    (tmp_path / "x").chmod(0o600)
    with pytest.raises(InputError, match="not an Ed25519 key"):
        load_signing_key(tmp_path / "x")


def test_bundle_verify_says_who_signed(bundle: Path, keys: Keys, tmp_path: Path) -> None:
    assert "not signed" in call("bundle", "verify", bundle)
    call("bundle", "sign", bundle, tmp_path / "one")
    assert keys[0].public.fingerprint in call("bundle", "verify", bundle)
    call("bundle", "verify", bundle, "--key", tmp_path / "one.pub")
    with pytest.raises(IntegrityError, match="not by"):
        call("bundle", "verify", bundle, "--key", tmp_path / "two.pub")
    text = (bundle / SIGNATURE).read_text()
    (bundle / SIGNATURE).write_text(text.replace("U1NI", "U1NJ", 1))
    with pytest.raises(IntegrityError, match="cannot be read"):
        call("bundle", "verify", bundle)


def test_keys_change_on_purpose_and_never_shut_a_board_out(
    bundle: Path, other: Path, keys: Keys, tmp_path: Path
) -> None:
    target, one, two = f"dir:{tmp_path / 'board'}", tmp_path / "one.pub", tmp_path / "two.pub"
    flash = ("flash", "--no-rehearse", "--no-gate")
    call(*flash, bundle, target)
    with pytest.raises(UsageError, match="would not start what it has"):
        call("key", "pin", target, one)
    assert not (tmp_path / "board" / TRUSTED_KEYS).exists()
    sign_bundle(bundle, keys[0])
    report = json.loads(call(*flash, bundle, target, f"--require-signature={one}", "--json"))
    assert report["pinned"] == [keys[0].public.fingerprint]
    # Rotation: pin the new one, flash what it signed, unpin the old one.
    assert keys[1].public.fingerprint in call("key", "pin", target, keys[1].public.line)
    with pytest.raises(UsageError, match="would not start"):
        call("key", "unpin", target, keys[0].public.fingerprint)
    sign_bundle(other, keys[1])
    call(*flash, other, target)
    shown = json.loads(call("key", "unpin", target, one, "--json"))
    assert [key["fingerprint"] for key in shown["pinned"]] == [keys[1].public.fingerprint]
    assert "no rollback" in shown["notes"][0]
    with pytest.raises(IntegrityError, match="is refused"):
        call("rollback", target)
    with pytest.raises(InputError, match="is not pinned"):
        call("key", "unpin", target, one)
    with pytest.raises(UsageError, match="the last key"):
        call("key", "unpin", target, two)
    for wrong in ((), (str(two), "--all")):
        with pytest.raises(UsageError, match="name one KEY"):
            call("key", "unpin", target, *wrong)
    call("key", "unpin", target, "--all")
    assert "SHA256" not in call("key", "list", target)
    call("rollback", target)


def test_a_broken_key_file_can_be_replaced(bundle: Path, keys: Keys, tmp_path: Path) -> None:
    target = f"dir:{tmp_path / 'board'}"
    sign_bundle(bundle, keys[0])
    flash = ("flash", bundle, target, "--no-rehearse", "--no-gate")
    call(*flash, "--require-signature")
    (tmp_path / "board" / TRUSTED_KEYS).write_text("broken")
    for arguments in (flash, ("key", "list", target), ("key", "pin", target, tmp_path / "one.pub")):
        with pytest.raises(IntegrityError, match="nothing is accepted"):
            call(*arguments)
    call("key", "pin", target, tmp_path / "one.pub", "--replace")
    call(*flash)


def test_an_option_that_swallowed_the_bundle_is_explained(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes a key"):
        call("flash", "--require-signature", bundle, f"dir:{tmp_path}", "dir:/x")
    with pytest.raises(InputError, match="cannot read a public key"):
        call("flash", bundle, f"dir:{tmp_path}", "--require-signature", tmp_path / "nothing.pub")


def test_key_check_asks_this_machine(bundle: Path, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no keys are pinned"):
        call("key", "check", bundle)
    with pytest.raises(IntegrityError, match="is not signed"):
        call("key", "check", bundle, "--key", tmp_path / "one.pub")
    sign_bundle(bundle, keys[0])
    record = json.loads(call("key", "check", bundle, "--key", tmp_path / "one.pub", "--json"))
    assert record["ok"] is True and record["signed_by"] == [keys[0].public.fingerprint]


@pytest.mark.xdist_group("flash")
def test_over_ssh_keys_are_pinned_and_the_board_checks_itself(
    bundle: Path, other: Path, keys: Keys, tmp_path: Path
) -> None:
    need("ssh")
    with SshBoard(tmp_path / "sshd", tmp_path / "root of ü") as board:
        sign_bundle(bundle, keys[0])
        flash = ("flash", "--no-rehearse", "--no-gate", "--force", *board.options)
        arguments = (*flash, bundle, board.target, "--json")
        report = json.loads(call(*arguments, f"--require-signature={tmp_path / 'one.pub'}"))
        # sshd's PATH leads to an edge, which checked.
        assert report["pinned"] and not [n for n in report["notes"] if "this machine" in n]
        with pytest.raises(IntegrityError, match="is not signed"):
            call(*flash, other, board.target)
        assert keys[0].public.fingerprint in call("key", "list", board.target, *board.options)
        call("key", "unpin", board.target, "--all", *board.options)
        call(*flash, other, board.target)


def test_build_signs(tmp_path: Path, keys: Keys) -> None:
    out = tmp_path / "out"
    build = ("build", "sample", "-d", "raspberry-pi-4b-4gb", "--recipe", "q4_0", "--no-quality")
    (tmp_path / "one").chmod(0o644)
    with pytest.raises(UnsafeInputError):  # before anything is built
        call(*build, "-o", out, "--sign", tmp_path / "one")
    (tmp_path / "one").chmod(0o600)
    call(*build, "-o", out, "--sign", tmp_path / "one", "--json")
    assert bundle_signers(open_bundle(out)) == [keys[0].public]
