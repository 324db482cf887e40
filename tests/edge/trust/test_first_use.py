"""The signature file is signed by nobody: what anybody puts into it, and where, decides nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import MANIFEST, bundle_signers, open_bundle
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.errors import IntegrityError
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.flash import FlashOptions, flash
from boardfit.edge.flash.trust import SignaturePolicy
from boardfit.edge.trust.bundle_signature import SIGNATURE, accepting_key, only_signer, signers
from boardfit.edge.trust.pins import TRUSTED_KEYS
from boardfit.edge.trust.signing import SigningKey
from tests.edge.flash.test_transfer import Quiet

Keys = tuple[SigningKey, SigningKey]
MESSAGE = b'{"a": 1}'


def blocks(bundle: Path, keys: Keys) -> dict[str, str]:
    manifest = (bundle / MANIFEST).read_bytes()
    ours, stranger = keys
    return {
        "ours": ours.sign(manifest).to_armor(),
        "stranger": stranger.sign(manifest).to_armor(),
        "stranger's of another": stranger.sign(b"{}").to_armor(),
        "ours of another": ours.sign(b"{}").to_armor(),
        "ours for git": ours.sign(manifest, "git").to_armor(),
    }


def put(bundle: Path, root: Path, *keys: SigningKey) -> list[str]:
    policy = SignaturePolicy(True, tuple(key.public for key in keys))
    options = FlashOptions(gate=False, signature=policy)
    return flash(open_bundle(bundle), DirectoryBoard(root), options, Quiet()).pinned


@pytest.mark.parametrize("order", itertools.permutations(["ours", "stranger"]))
def test_a_board_belongs_to_nobody_before_one_is_named(
    bundle: Path, keys: Keys, tmp_path: Path, order: tuple[str, ...]
) -> None:
    of = blocks(bundle, keys)
    (bundle / SIGNATURE).write_text("".join(of[name] for name in order))
    root = tmp_path / "board"
    with pytest.raises(IntegrityError, match="signed by 2 keys") as caught:
        put(bundle, root)
    assert "--require-signature=KEY.pub" in str(caught.value.next_step)
    assert not (root / TRUSTED_KEYS).exists() and not (root / "releases").exists()
    ours = keys[0].public
    assert put(bundle, root, keys[0]) == [ours.fingerprint]
    assert ours.line.split()[1] in (root / TRUSTED_KEYS).read_text()
    assert keys[1].public.line.split()[1] not in (root / TRUSTED_KEYS).read_text()


@pytest.mark.parametrize("extra", ["stranger's of another", "ours of another", "ours for git"])
@pytest.mark.parametrize("first", [True, False])
def test_a_block_that_does_not_hold_pins_nobody(
    bundle: Path, keys: Keys, tmp_path: Path, extra: str, first: bool
) -> None:
    of = blocks(bundle, keys)
    parts = [of[extra], of["ours"]] if first else [of["ours"], of[extra]]
    (bundle / SIGNATURE).write_text("".join(parts))
    root = tmp_path / "board"
    with pytest.raises(IntegrityError):
        put(bundle, root)
    assert not (root / TRUSTED_KEYS).exists()
    # The key that is named signed it, whatever lies beside its signature.
    assert put(bundle, root, keys[0]) == [keys[0].public.fingerprint]


def test_the_same_key_twice_is_one_signer(bundle: Path, keys: Keys, tmp_path: Path) -> None:
    of = blocks(bundle, keys)
    (bundle / SIGNATURE).write_text(of["ours"] * 2)
    assert bundle_signers(open_bundle(bundle)) == [keys[0].public]
    assert put(bundle, tmp_path / "board") == [keys[0].public.fingerprint]


def test_a_single_signer_is_pinned_and_shown(bundle: Path, keys: Keys, tmp_path: Path) -> None:
    sign_bundle(bundle, keys[0])
    assert put(bundle, tmp_path / "board") == [keys[0].public.fingerprint]


def test_which_key_accepted_it_does_not_hang_on_the_order(keys: Keys) -> None:
    one, two = keys
    made = [one.sign(MESSAGE).to_armor(), two.sign(MESSAGE).to_armor(), one.sign(b"x").to_armor()]
    for parts in itertools.permutations(made):
        data = "".join(parts).encode()
        for accepted in itertools.permutations([one.public, two.public]):
            assert accepting_key(MESSAGE, data, accepted, "it") == accepted[0]
        with pytest.raises(IntegrityError):
            only_signer(MESSAGE, data, "it")
        with pytest.raises(IntegrityError, match="is not one of this manifest"):
            signers(MESSAGE, data)
    both = "".join(made[:2] + made[:2]).encode()
    assert signers(MESSAGE, both) == [one.public, two.public]
