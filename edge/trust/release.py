"""What a signer states about a release beside its bytes: its number, its date and its expiry.

    "release": 20261130161500                  grows with every release of one name
    "released_at": "2026-11-30T16:15:00Z"      when it was signed
    "expires_at": "2027-11-30T00:00:00Z"       optional

They stand in the manifest, so that every signature covers them. The first signature writes them.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.units import printable

NUMBER, RELEASED_AT, EXPIRES_AT = "release", "released_at", "expires_at"
#: Every reader of JSON can hold it.
MAX_NUMBER = 2**53 - 1
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_SPAN = re.compile(r"([1-9][0-9]{0,4})([dwy])")
_DAYS = {"d": 1, "w": 7, "y": 365}


@dataclass(frozen=True)
class ReleaseTerms:
    """`number` is 0 in a bundle that was signed before releases had numbers, or never."""

    number: int = 0
    released_at: datetime | None = None
    expires_at: datetime | None = None

    def entries(self) -> dict[str, Any]:
        found: dict[str, Any] = {NUMBER: self.number}
        for key, value in ((RELEASED_AT, self.released_at), (EXPIRES_AT, self.expires_at)):
            if value is not None:
                found[key] = format_time(value)
        return found


def new_release(number: int | None = None, expires: str | None = None) -> ReleaseTerms:
    """The entries of a release that is signed now. Its number is the time by default,
    20261130161500; now is SOURCE_DATE_EPOCH where that is set. Raises UsageError for a bad
    number or expiry.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    now_s = float(text) if re.fullmatch(r"[0-9]{1,11}", text) else time.time()
    now = datetime.fromtimestamp(now_s, timezone.utc).replace(microsecond=0)
    if number is None:
        number = int(now.strftime("%Y%m%d%H%M%S"))
    if not 0 < number <= MAX_NUMBER:
        raise UsageError(f"the release number is {number}, expected 1 to {MAX_NUMBER}")
    return ReleaseTerms(number, now, None if expires is None else _parse_expiry(expires, now))


def _parse_expiry(text: str, now: datetime) -> datetime:
    try:
        if span := _SPAN.fullmatch(text):
            end = now + timedelta(days=int(span[1]) * _DAYS[span[2]])
        else:
            end = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        raise UsageError(
            f"the expiry is {printable(text, 40)!r}, expected a span or a date",
            next_step="--expires 90d, 12w or 1y, or --expires 2027-06-30",
        ) from None
    if end <= now:
        raise UsageError(
            f"the expiry {printable(text, 40)} is not after now ({format_time(now)})",
            next_step="choose a later date, or set this machine's clock",
        )
    return end


def read_release(manifest: Mapping[str, Any], place: str) -> ReleaseTerms:
    """The entries of a manifest from `place`. Raises InputError for other types."""

    def refuse(key: str, expected: str) -> InputError:
        got = printable(repr(manifest[key]), 40)
        return InputError(
            f"{place}: entry {key!r} is {got}, expected {expected}",
            next_step="sign the bundle again, from a fresh build",
        )

    number = manifest.get(NUMBER, 0)
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise refuse(NUMBER, f"a number up to {MAX_NUMBER}")
    times = [parse_time(manifest.get(key)) for key in (RELEASED_AT, EXPIRES_AT)]
    for key, found in zip((RELEASED_AT, EXPIRES_AT), times, strict=True):
        if found is None and manifest.get(key) is not None:
            raise refuse(key, "a time such as 2026-11-30T16:15:00Z")
    return ReleaseTerms(number, *times)


def parse_time(value: object) -> datetime | None:
    """A time as `format_time` writes it; None for anything else."""
    try:
        found = datetime.strptime(str(value), _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return found if format_time(found) == value else None


def format_time(when: datetime) -> str:
    # strftime leaves zeros out of years before 1000 on Linux.
    return f"{when.year:04}" + when.astimezone(timezone.utc).strftime(_TIME[2:])
