"""A digest per result, so that an edited one is seen.

The digest is SHA-256 over the record's canonical JSON (keys sorted, no spaces, non-ASCII escaped)
without the entry itself. It proves that a line is as `edge bench` wrote it, not who wrote it: an
editor can compute a new digest, but `edge report --verify` catches that: it derives every figure
from the raw trace again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST = "digest"


def canonical(record: Mapping[str, Any]) -> bytes:
    """Bytes that two equal records share. Raises ValueError on NaN or infinity."""
    rest = {key: value for key, value in record.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def digest_of(record: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(canonical(record)).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, DIGEST: digest_of(record)}
