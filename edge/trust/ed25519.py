"""Ed25519 verification in pure Python (RFC 8032, section 5.1.7).

A board has neither `cryptography` nor `openssl` for sure, and three ways to answer one question are
three answers. It takes 4 ms on a laptop and is meant for public data: its timing gives nothing
away. Signing, which handles a secret, is left to `cryptography` (`boardfit.edge.trust.signing`).

Where implementations differ this one is strict: S must be below the group order, points must be
encoded canonically, keys of small order are refused, and the equation is checked without the
cofactor, as OpenSSL does. Everything that it accepts, OpenSSL accepts.
"""

import hashlib

KEY_BYTES, SIGNATURE_BYTES = 32, 64

# The curve -x² + y² = 1 + d·x²·y² over the integers mod P; L is the order of the base point.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, P) % P
_SQRT_MINUS_1 = pow(2, (P - 1) // 4, P)

#: (X, Y, Z, T) with x = X/Z, y = Y/Z, x·y = T/Z.
_Point = tuple[int, int, int, int]
_NEUTRAL: _Point = (0, 1, 1, 0)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the owner of `public_key` signed `message`. False for anything malformed."""
    if len(signature) != SIGNATURE_BYTES or not is_valid_key(public_key):
        return False
    key = _decode(public_key)
    assert key is not None
    s = int.from_bytes(signature[32:], "little")
    if s >= L:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    k = int.from_bytes(digest, "little") % L
    # [S]B = R + [k]A, as R = [S]B + [k](-A). Encoding the right side refuses a non-canonical R.
    negated = (P - key[0], key[1], key[2], P - key[3])
    return _encode(_sum_of_multiples(s, _BASE, k, negated)) == signature[:32]


def is_valid_key(public_key: bytes) -> bool:
    """Whether these bytes are a point of the curve, canonically encoded, and not of small order."""
    point = _decode(public_key) if len(public_key) == KEY_BYTES else None
    if point is None:
        return False
    for _ in range(3):  # the cofactor is 8
        point = _add(point, point)
    return point[0] % P != 0 or (point[1] - point[2]) % P != 0


def _decode(data: bytes) -> _Point | None:
    """The point that 32 bytes encode (RFC 8032, 5.1.3); None when they encode none."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & ((1 << 255) - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (_D * y * y + 1) % P
    x = u * v**3 * pow(u * v**7, (P - 5) // 8, P) % P
    if (v * x * x + u) % P == 0:
        x = x * _SQRT_MINUS_1 % P
    if (v * x * x - u) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def _encode(point: _Point) -> bytes:
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _add(one: _Point, two: _Point) -> _Point:
    """RFC 8032, 5.1.4: complete, so that it may also be given equal points."""
    a = (one[1] - one[0]) * (two[1] - two[0]) % P
    b = (one[1] + one[0]) * (two[1] + two[0]) % P
    c = 2 * _D * one[3] * two[3] % P
    d = 2 * one[2] * two[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _sum_of_multiples(m: int, one: _Point, n: int, two: _Point) -> _Point:
    """[m]one + [n]two, both numbers read together from the top bit down (Shamir's trick)."""
    addends = (None, one, two, _add(one, two))
    total = _NEUTRAL
    for i in range(max(m.bit_length(), n.bit_length()) - 1, -1, -1):
        total = _add(total, total)
        addend = addends[(m >> i & 1) | (n >> i & 1) << 1]
        if addend is not None:
            total = _add(total, addend)
    return total


def _base_point() -> _Point:
    """y = 4/5, x even."""
    point = _decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    assert point is not None
    return point


_BASE = _base_point()
