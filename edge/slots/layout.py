"""Names on the board, the state file, and decisions over them. Pure: no disk is touched here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from boardfit.edge.fields import AnyObject, Flag, OrNull, Schema, Text, keep_valid

RELEASES = "releases"
INCOMING = "incoming"
CURRENT = "current"
STATE = "state.json"
LOCK = ".lock"
#: A release being removed is renamed to this first, so that no half of it is seen as a release.
TRASH = ".trash-"

KIND = "boardfit-slots"
SCHEMA = 1
MAX_STATE_BYTES = 1024 * 1024
MAX_HISTORY = 100
_ID = re.compile(r"[0-9a-f]{64}")


def is_release_id(text: str) -> bool:
    """Whether `text` is a bundle id: 64 lower-case hex digits."""
    return _ID.fullmatch(text) is not None


def is_trash(name: str) -> bool:
    """Whether a name at the root is that of a release that was being removed."""
    return name.startswith(TRASH) and is_release_id(name.removeprefix(TRASH))


def release_folder(release_id: str) -> str:
    """`releases/<id>`. Raises ValueError for anything that is no id, so that no path escapes."""
    if not is_release_id(release_id):
        raise ValueError(f"not a bundle id: {release_id!r:.80}")
    return f"{RELEASES}/{release_id}"


def bundle_folder(release_id: str) -> str:
    return f"{release_folder(release_id)}/bundle"


def env_folder(release_id: str) -> str:
    return f"{release_folder(release_id)}/env"


def incoming_folder(release_id: str) -> str:
    return f"{INCOMING}/{release_folder(release_id).rpartition('/')[2]}"


def parse_pointer(text: str | None) -> str | None:
    """The release that `current` names, as a link or as a pointer file; None if it names none."""
    folder, _, release_id = (text or "").strip().rpartition("/")
    return release_id if folder == RELEASES and is_release_id(release_id) else None


@dataclass(frozen=True)
class SlotState:
    """`history` holds ids in the order in which they were made current, newest last, written before
    the switch. `releases` keeps what is known of each. Losing it loses no release.
    """

    history: tuple[str, ...] = ()
    releases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        document = {
            "kind": KIND,
            "schema": SCHEMA,
            "history": list(self.history),
            "releases": {key: dict(value) for key, value in self.releases.items()},
        }
        return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

    def with_release(self, release_id: str, **facts: Any) -> SlotState:
        """The same with `facts` added to what is known of one release."""
        known = {**self.releases.get(release_id, {}), **facts}
        return replace(self, releases={**self.releases, release_id: known})

    def drop_releases(self, release_ids: Iterable[str]) -> SlotState:
        gone = set(release_ids)
        return SlotState(
            tuple(i for i in self.history if i not in gone),
            {key: value for key, value in self.releases.items() if key not in gone},
        )

    def activating(self, release_id: str) -> SlotState:
        """The same with `release_id` as the newest in the history."""
        kept = [i for i in self.history if i != release_id][-(MAX_HISTORY - 1) :]
        return replace(self, history=(*kept, release_id))


#: What is known of a release. An entry of another kind is dropped: a state may be lost.
RELEASE_FACTS: Schema = {
    **dict.fromkeys(("name", "recipe", "device", "flashed_at", "signed_by"), OrNull(Text())),
    "env": Flag(),
    "health": OrNull(AnyObject()),
}


def parse_state(data: bytes | None) -> SlotState | None:
    """Parse a state file; None if it is missing or damaged. Releases then count as the oldest."""
    try:
        document = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        return None
    history, releases = document.get("history"), document.get("releases")
    if not isinstance(history, list) or not isinstance(releases, dict):
        return None
    ids = tuple(dict.fromkeys(i for i in history if isinstance(i, str) and is_release_id(i)))
    facts = {
        key: keep_valid(value, RELEASE_FACTS, others=True)
        for key, value in releases.items()
        if is_release_id(key) and isinstance(value, dict)
    }
    return SlotState(ids[-MAX_HISTORY:], facts)


def previous_release(
    history: Sequence[str], current: str | None, present: Iterable[str]
) -> str | None:
    """The release to go back to: the newest that is still there and was current before `current`.
    An entry after `current` was either never switched to, or rolled back from.
    """
    there = set(present)
    if current in history:
        history = history[: history.index(current)]
    return next((i for i in reversed(history) if i in there and i != current), None)


def collectable(
    history: Sequence[str], present: Iterable[str], keep: Iterable[str | None]
) -> list[str]:
    """Releases that may go, in that order: those never current first, then by age. Never `keep`."""
    age = {release_id: i for i, release_id in enumerate(history)}
    return sorted(set(present) - set(keep), key=lambda i: (age.get(i, -1), i))
