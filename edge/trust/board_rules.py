"""What a board demands of a signed bundle, beyond its key: `board.json`, beside `trusted_keys`.

    {"kind": "boardfit-board", "schema": 1,
     "devices": ["raspberry-pi-5-8gb"],       which board this is, by its profile
     "floors": {"sample": {"release": 20261130161500, "kept": ["<id>"]}},
     "latest": "2026-11-30T16:15:00Z"}        the newest date of a release that was accepted here

A release below the floor of its name is refused, except one that is `kept`: it was accepted here
before, and a rollback may lead to it. Like a key file, a file that cannot be read accepts nothing.

A board without a battery wakes up in 1970. Time is therefore never taken to be before the dates
that signers have stated: that of the release itself, and `latest`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from boardfit.edge.errors import IntegrityError
from boardfit.edge.trust.release import MAX_NUMBER, ReleaseTerms, format_time, parse_time
from boardfit.edge.units import printable

BOARD_RULES = "board.json"
MAX_RULES_BYTES = 1024 * 1024
KIND, SCHEMA = "boardfit-board", 1
_MAX_NAMES = 200
_MAX_DEVICES = 16
_MAX_KEPT = 16
_ROLLBACK_STEP = (
    "edge rollback goes back to a release that is still there; edge flash --allow-older accepts "
    "an older one on purpose"
)


@dataclass(frozen=True)
class Subject:
    id: str
    name: str
    device: str
    release: ReleaseTerms


@dataclass(frozen=True)
class Floor:
    """The lowest number that is accepted, and the ids of releases that were accepted before."""

    number: int = 0
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class BoardRules:
    """Empty, it demands nothing."""

    devices: tuple[str, ...] = ()
    floors: Mapping[str, Floor] = field(default_factory=dict)
    latest: datetime | None = None

    def floor(self, name: str) -> Floor:
        return self.floors.get(name, Floor())

    def refuse(
        self, subject: Subject, who: str, *, allow_older: bool = False, step: str = _ROLLBACK_STEP
    ) -> None:
        """Raise IntegrityError unless the board starts this release. `who` names the board."""
        if self.devices and subject.device not in self.devices:
            raise IntegrityError(
                f"the bundle was signed for a {printable(subject.device, 60)}; {who} is a "
                + " or ".join(self.devices),
                next_step=f"edge build MODEL --device {self.devices[0]} --sign KEY, or edge flash "
                "--force if the record is wrong",
            )
        end = subject.release.expires_at
        known = (datetime.now(timezone.utc), subject.release.released_at, self.latest)
        if end is not None and max(when for when in known if when is not None) > end:
            raise IntegrityError(
                f"release {subject.id[:12]} of {printable(subject.name, 60)} expired at "
                f"{format_time(end)}; {who} does not accept it any more",
                next_step="get a newer release, signed with a later --expires",
            )
        floor = self.floor(subject.name)
        if subject.release.number < floor.number and not (allow_older or subject.id in floor.kept):
            raise older_error(subject, floor, who, step)

    def with_accepted(
        self, subject: Subject, kept: Sequence[str], *, lower: bool = False
    ) -> BoardRules:
        """The same after a release has been accepted. A rollback may lead to the ids `kept`."""
        old = self.floor(subject.name).number
        number = subject.release.number if lower else max(old, subject.release.number)
        floor = Floor(number, tuple(dict.fromkeys(kept))[-_MAX_KEPT:])
        dates = [when for when in (self.latest, subject.release.released_at) if when is not None]
        floors = {**self.floors, subject.name: floor}
        rules = replace(self, floors=floors, latest=max(dates, default=None))
        n_bytes = len(rules.to_bytes())
        if len(floors) > _MAX_NAMES or n_bytes > MAX_RULES_BYTES:
            raise IntegrityError(
                f"{BOARD_RULES} would hold {len(floors)} names of bundles, in {n_bytes} "
                f"bytes; {_MAX_NAMES} names and {MAX_RULES_BYTES} bytes are the most",
                next_step="remove names that are not used any more from that file on the board",
            )
        return rules

    def with_device(self, device: str) -> BoardRules:
        return replace(self, devices=tuple(dict.fromkeys((*self.devices, device)))[-_MAX_DEVICES:])

    def to_bytes(self) -> bytes:
        floors = {
            name: {"release": floor.number, "kept": list(floor.kept)}
            for name, floor in self.floors.items()
        }
        document: dict[str, Any] = {
            "kind": KIND, "schema": SCHEMA, "devices": list(self.devices), "floors": floors,
        }  # fmt: skip
        if self.latest is not None:
            document["latest"] = format_time(self.latest)
        return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def older_error(
    subject: Subject, floor: Floor, who: str, step: str = _ROLLBACK_STEP
) -> IntegrityError:
    return IntegrityError(
        f"release {subject.release.number} of {printable(subject.name, 60)} is older than "
        f"{floor.number}, which {who} has accepted",
        next_step=step,
    )


def parse_rules(data: bytes, place: str) -> BoardRules:
    """Parse a rules file. Raises IntegrityError for a damaged one: nothing is accepted then."""
    try:
        document = json.loads(data)
        if document["kind"] != KIND or document["schema"] != SCHEMA:
            raise ValueError("it is of another kind or schema")
        devices, floors, latest = (document.get(k) for k in ("devices", "floors", "latest"))
        if len(floors) > _MAX_NAMES or len(devices) > _MAX_DEVICES:
            raise ValueError("it has too many entries")
        if type(devices) is not list or not all(isinstance(each, str) for each in devices):
            raise ValueError("devices is not a list of strings")
        when = parse_time(latest)
        if latest is not None and when is None:
            raise ValueError("latest is not a time")
        parsed = {name: _parse_floor(entry) for name, entry in floors.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise shut_rules(place, printable(str(error), 100)) from None
    return BoardRules(tuple(devices), parsed, when)


def _parse_floor(entry: Any) -> Floor:
    number, kept = entry["release"], entry["kept"]
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise ValueError("a floor is not a release number")
    if not isinstance(kept, list) or not all(isinstance(each, str) for each in kept):
        raise ValueError("kept is not a list of ids")
    return Floor(number, tuple(kept))


def shut_rules(place: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{place} states which releases are accepted, but cannot be used ({why}): nothing is "
        "accepted",
        next_step="edge key pin TARGET KEY.pub --device BOARD writes it anew",
    )
