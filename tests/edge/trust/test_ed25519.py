"""Our verification against RFC 8032's vectors, constructed edge cases, and OpenSSL."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.trust import ed25519
from boardfit.edge.trust.ed25519 import L, P, is_valid_key, verify

# RFC 8032, section 7.1: secret key, public key, message, signature. The last is TEST SHA(abc).
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701c"
        "f9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0"
        "f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f76098"
        "4dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3"
        "feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c664"
        "31e0303dca179c138ac17ad9bef1177331a704",
    ),
]

# Every encoding of the eight points of small order, the non-canonical ones included.
_T8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
_T8_NEG = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"


def with_sign(text: str) -> str:
    data = bytearray.fromhex(text)
    data[31] |= 0x80
    return data.hex()


def encoded(y: int) -> str:
    return y.to_bytes(32, "little").hex()


SMALL_ORDER = [
    form(text)
    for text in (encoded(1), encoded(P - 1), encoded(0), _T8, _T8_NEG, encoded(P), encoded(P + 1))
    for form in (str, with_sign)
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc(secret: str, public: str, message: str, signature: str) -> None:
    key = bytes.fromhex(public)
    assert verify(key, bytes.fromhex(message), bytes.fromhex(signature))
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert private.public_key().public_bytes_raw() == key
    assert not verify(key, bytes.fromhex(message) + b"x", bytes.fromhex(signature))


def test_the_group_is_the_one_of_the_rfc() -> None:
    assert ed25519._encode(ed25519._BASE) == bytes.fromhex("58" + "66" * 31)
    point = ed25519._sum_of_multiples(L, ed25519._BASE, 0, ed25519._BASE)
    assert ed25519._encode(point) == (1).to_bytes(32, "little")


@pytest.mark.parametrize("text", SMALL_ORDER)
def test_keys_of_small_order_are_refused(text: str) -> None:
    """With them anybody can make a signature that satisfies the equation."""
    key = bytes.fromhex(text)
    assert not is_valid_key(key)
    # R = [S]B with any S: holds for the neutral element as a key, for every message.
    s = 12345
    r = ed25519._encode(ed25519._sum_of_multiples(s, ed25519._BASE, 0, ed25519._BASE))
    assert not verify(key, b"anything", r + s.to_bytes(32, "little"))
    assert not verify(key, b"anything", key + bytes(32))


def test_a_forgery_that_a_lax_verifier_would_take_is_refused() -> None:
    neutral, s = (1).to_bytes(32, "little"), 7
    r = ed25519._encode(ed25519._sum_of_multiples(s, ed25519._BASE, 0, ed25519._BASE))
    forged = r + s.to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(neutral).verify(forged, b"any message")  # OpenSSL takes it
    assert not verify(neutral, b"any message", forged)


def test_s_must_be_below_the_group_order() -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"m")
    s = int.from_bytes(signature[32:], "little")
    for more in (L, 2 * L, 1 << 255):
        malleated = signature[:32] + (s + more).to_bytes(32, "little")
        assert not verify(public, b"m", malleated)
    assert verify(public, b"m", signature)


def test_a_non_canonical_r_is_refused() -> None:
    """R of small order, y = 1 written as P + 1: needs a signer who cheats, whom we build here."""
    secret = hashlib.sha512(bytes(32)).digest()[:32]
    a = (int.from_bytes(secret, "little") & ((1 << 254) - 8)) | (1 << 254)
    public = ed25519._encode(ed25519._sum_of_multiples(a, ed25519._BASE, 0, ed25519._BASE))
    for y, expected in ((1, True), (P + 1, False)):
        r = y.to_bytes(32, "little")  # the neutral element: r = 0, so that S = k·a
        k = int.from_bytes(hashlib.sha512(r + public + b"m").digest(), "little")
        assert verify(public, b"m", r + (k * a % L).to_bytes(32, "little")) is expected


@pytest.mark.parametrize("n_bytes", [0, 1, 31, 32, 33, 63, 65, 128])
def test_wrong_lengths_are_no_signatures_and_no_keys(n_bytes: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"m")
    assert not verify(public, b"m", (signature * 2)[:n_bytes])
    if n_bytes != 32:
        assert not verify((public * 4)[:n_bytes], b"m", signature)


@pytest.mark.parametrize("y", [P, P + 1, P + 18, 2**255 - 1, 2])
def test_bytes_that_are_no_canonical_point_are_no_key(y: int) -> None:
    assert not is_valid_key(y.to_bytes(32, "little"))  # 2 is the y of no point


def openssl_accepts(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@settings(max_examples=60, deadline=None)
@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=200),
    flip=st.integers(-1, 96 * 8 - 1),
)
def test_openssl_and_we_agree(seed: bytes, message: bytes, flip: int) -> None:
    """Signatures of random keys, whole or with one bit flipped in key or signature."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    data = bytearray(private.public_key().public_bytes_raw() + private.sign(message))
    if flip >= 0:
        data[flip // 8] ^= 1 << flip % 8
    public, signature = bytes(data[:32]), bytes(data[32:])
    ours = verify(public, message, signature)
    assert ours == (flip < 0)
    assert ours == openssl_accepts(public, message, signature)


@settings(max_examples=60, deadline=None)
@given(
    public=st.one_of(
        st.binary(min_size=32, max_size=32), st.sampled_from(SMALL_ORDER).map(bytes.fromhex)
    ),
    r=st.one_of(
        st.binary(min_size=32, max_size=32), st.sampled_from(SMALL_ORDER).map(bytes.fromhex)
    ),
    s=st.one_of(st.integers(0, 2**256 - 1), st.sampled_from([0, 1, L - 1, L, L + 1])),
    message=st.binary(max_size=20),
)
def test_whatever_we_accept_openssl_accepts(
    public: bytes, r: bytes, s: int, message: bytes
) -> None:
    signature = r + s.to_bytes(32, "little")
    assert not verify(public, message, signature) or openssl_accepts(public, message, signature)
