"""Manage releases over any `BoardFiles`: list, verify, switch, roll back, free space.

After a power cut at any point `current` names a release that was whole when it was switched to.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from boardfit.edge.bundle.bundle import MANIFEST, MAX_MANIFEST_BYTES, SUMS, Bundle, parse_manifest
from boardfit.edge.errors import (
    DeviceError,
    DoesNotFitError,
    EdgeError,
    EngineError,
    InputError,
    IntegrityError,
    UsageError,
)
from boardfit.edge.slots import layout
from boardfit.edge.slots.failed_starts import failed_starts, forgive_starts
from boardfit.edge.slots.files import BoardFiles
from boardfit.edge.slots.layout import is_release_id, release_folder
from boardfit.edge.slots.trust import pinned_keys, read_manifest, refuse_release, release_signer
from boardfit.edge.terminal.progress import Say
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.units import format_bytes, printable


@dataclass(frozen=True)
class Release:
    """One release on the board. `n_bytes` is what removing it would free; `role` is `current`,
    `previous`, `older` or `untried` (never switched to).
    """

    id: str
    role: str
    n_bytes: int
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "role": self.role, "n_bytes": self.n_bytes, **self.facts}


class Slots:
    def __init__(self, files: BoardFiles) -> None:
        self.files = files

    @contextmanager
    def hold_lock(self, wait_s: float = 0) -> Iterator[None]:
        """Hold the board's lock; create and check its root folder. Raises UsageError when another
        process holds the lock, or when the root is not a store.
        """
        self.files.prepare()
        self._refuse_foreign_root()
        with self.files.lock(wait_s):
            yield

    def _refuse_foreign_root(self) -> None:
        if layout.STATE in self.files.entries(""):
            return
        pointer = self.files.pointer()
        strangers = [n for n in self.files.entries(layout.RELEASES) if not is_release_id(n)]
        if strangers or (pointer is not None and layout.parse_pointer(pointer) is None):
            raise UsageError(
                f"{self.files.root} has a {layout.RELEASES}/ or {layout.CURRENT} that boardfit did "
                "not make",
                next_step="choose another folder on the board",
            )

    def state(self) -> layout.SlotState:
        data = self.files.read(layout.STATE, layout.MAX_STATE_BYTES)
        return layout.parse_state(data) or layout.SlotState()

    def present(self) -> list[str]:
        """Ids of the releases that are there, whole or damaged."""
        entries = self.files.entries(layout.RELEASES)
        return sorted(n for n, e in entries.items() if e.kind == "folder" and is_release_id(n))

    def current(self) -> str | None:
        """The release that runs; None when nothing was flashed yet, or `current` names nothing."""
        release_id = layout.parse_pointer(self.files.pointer())
        return release_id if release_id in self.present() else None

    def require_current(self, place: str) -> str:
        """The release that runs. Raises EngineError when there is none at `place`."""
        if (release_id := self.current()) is None:
            raise EngineError(f"{place} has no current release", next_step="edge flash")
        return release_id

    def previous(self) -> str | None:
        return layout.previous_release(self.state().history, self.current(), self.present())

    def releases(self) -> list[Release]:
        """Everything on the board, current first, then the newest."""
        state, present, current = self.state(), self.present(), self.current()
        previous = layout.previous_release(state.history, current, present)
        sizes = self.files.used_bytes([release_folder(i) for i in present])

        def role(release_id: str) -> str:
            if release_id == current:
                return "current"
            if release_id == previous:
                return "previous"
            return "older" if release_id in state.history else "untried"

        newest_last = layout.collectable(state.history, present, [current])
        order = [*([current] if current else []), *reversed(newest_last)]
        return [Release(i, role(i), sizes[release_folder(i)], self._facts(state, i)) for i in order]

    def _facts(self, state: layout.SlotState, release_id: str) -> dict[str, Any]:
        facts = dict(state.releases.get(release_id, {}))
        if n_failed := failed_starts(self.files, release_id):
            facts["failed_starts"] = n_failed
        return facts

    def bundle(self, release_id: str) -> Bundle:
        """A release's manifest; its files are not looked at. Raises IntegrityError when it is not
        the one that the id stands for.
        """
        text = read_manifest(self.files, release_id)
        return parse_manifest(text, Path(layout.bundle_folder(release_id)))

    def damage(self, folder: str, bundle: Bundle) -> list[str]:
        """Names of a bundle's missing, foreign and differing files in `folder`, read from the
        medium.
        """
        expected = {**{file.name: file.sha256 for file in bundle.files}, MANIFEST: bundle.id}
        tree = self.files.tree(folder)
        parents = {str(parent) for name in expected for parent in PurePosixPath(name).parents}
        wrong = [
            name
            for name, entry in tree.items()
            if entry.kind != ("folder" if name in parents else "file")
            or name not in {*parents, *expected, SUMS, SIGNATURE}
        ]
        digests = self.files.digests([f"{folder}/{name}" for name in expected])
        wrong += [name for name, sha in expected.items() if digests[f"{folder}/{name}"] != sha]
        sums = self.files.read(f"{folder}/{SUMS}", MAX_MANIFEST_BYTES) or b""
        if set(sums.decode("utf-8", "replace").splitlines()) != {
            f"{sha}  {name}" for name, sha in expected.items()
        }:
            wrong.append(SUMS)
        return sorted(set(wrong))

    def verify(self, release_id: str) -> Bundle:
        """Read every byte of a release. Raises IntegrityError naming what differs, or when keys are
        pinned and none of them signed it, or when the board's rules refuse it.
        """
        release_signer(self.files, release_id, pinned_keys(self.files))
        bundle = self.bundle(release_id)
        refuse_release(self.files, bundle.subject)
        if wrong := self.damage(layout.bundle_folder(release_id), bundle):
            raise IntegrityError(
                f"release {release_id[:12]} on {self.files.root}: {printable(wrong[0])} is not "
                "as in the manifest" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
                next_step="flash the bundle again: only what is damaged is sent",
            )
        return bundle

    def note(self, release_id: str, **facts: Any) -> None:
        self.files.write(layout.STATE, self.state().with_release(release_id, **facts).to_bytes())

    def activate(self, release_id: str) -> str | None:
        """Switch to a release, by one rename; returns the one that was current before. Raises
        InputError when it is not there, IntegrityError when no pinned key signed it, DeviceError
        when the board then names another one.
        """
        before = self.current()
        if release_id not in self.present():
            raise InputError(f"release {release_id[:12]} is not on {self.files.root}")
        release_signer(self.files, release_id, pinned_keys(self.files))
        forgive_starts(self.files, release_id)
        if before == release_id:
            return before
        self.files.write(layout.STATE, self.state().activating(release_id).to_bytes())
        self.files.point(release_folder(release_id))
        if self.current() != release_id:
            raise DeviceError(f"{self.files.root}: the switch to {release_id[:12]} did not hold")
        return before

    def switch_back(self, release_id: str) -> None:
        """Point at an earlier release; in the history the one left behind counts as rolled back
        from.
        """
        self.files.point(release_folder(release_id))

    def rollback(self, to: str | None = None) -> tuple[str | None, str]:
        """Switch to the previous release, or to `to` (an id or its beginning), after verifying it.
        Returns the ids before and after. Raises InputError when there is none, IntegrityError when
        its files are damaged.
        """
        current = self.current()
        target = self.find(to) if to else self.previous()
        if target is None:
            raise InputError(
                f"{self.files.root} has no earlier release to go back to",
                next_step="edge slots lists the releases; edge flash adds one",
            )
        self.verify(target)
        forgive_starts(self.files, target)
        if target != current:
            state = self.state()
            if target not in state.history:
                self.files.write(layout.STATE, state.activating(target).to_bytes())
            self.switch_back(target)
        return current, target

    def find(self, beginning: str) -> str:
        """The one release whose id begins so. Raises InputError for none and for several."""
        found = [i for i in self.present() if i.startswith(beginning.lower())]
        if len(found) != 1:
            raise InputError(
                f"{len(found)} releases on {self.files.root} begin with {printable(beginning)!r}",
                next_step="edge slots lists the releases",
            )
        return found[0]

    def sweep(self, keep_incoming: str | None = None) -> None:
        """Remove what interrupted runs left: half-removed releases, and incoming files of other
        bundles than `keep_incoming`.
        """
        self.files.sweep()
        root = self.files.entries("")
        gone = [name for name, e in root.items() if e.kind == "folder" and layout.is_trash(name)]
        gone += [
            f"{layout.INCOMING}/{name}"
            for name, entry in self.files.entries(layout.INCOMING).items()
            if entry.kind == "folder" and is_release_id(name) and name != keep_incoming
        ]
        if gone:
            self.files.remove(gone)

    def remove(self, release_ids: Sequence[str]) -> None:
        """Remove releases; none of them may be current."""
        current = self.current()
        for release_id in release_ids:
            if release_id == current:
                raise UsageError(f"release {release_id[:12]} is current and stays")
            trash = f"{layout.TRASH}{release_id}"
            self.files.claim(release_folder(release_id))
            self.files.remove([trash])
            self.files.rename(release_folder(release_id), trash)
            self.files.remove([trash])
        if release_ids:
            self.files.write(layout.STATE, self.state().drop_releases(release_ids).to_bytes())

    def make_room(
        self,
        needed: int,
        keep: Sequence[str] = (),
        *,
        drop_previous: bool = False,
        say: Say | None = None,
    ) -> None:
        """Remove the oldest releases, one by one, until `needed` bytes are free. The current one,
        the previous one (unless `drop_previous`) and those in `keep` stay. Raises DoesNotFitError,
        and removes nothing, when it would not be enough.
        """
        free = self.files.free_bytes()
        if free >= needed:
            return
        current, previous = self.current(), self.previous()
        kept = {current, *keep} | (set() if drop_previous else {previous})
        order = layout.collectable(self.state().history, self.present(), kept)
        spare = [previous] if previous and previous in kept and previous not in keep else []
        sizes = self.files.used_bytes([release_folder(i) for i in (*order, *spare)])
        could = sum(sizes[release_folder(i)] for i in order)
        if free + could < needed:
            more = sum(sizes[release_folder(i)] for i in spare)
            raise no_space_error(self.files.root, needed, free, could, more)
        for release_id in order:
            if free >= needed:
                break
            if say:
                say(f"removing release {release_id[:12]} to make room")
            self.remove([release_id])
            free = self.files.free_bytes()
        if free < needed:
            raise no_space_error(self.files.root, needed, free, 0, 0)


def no_space_error(root: str, needed: int, free: int, could: int, previous: int) -> EdgeError:
    """The three figures that decide, and the fourth that the user may choose to use."""
    message = (
        f"{root} has too little space: {format_bytes(needed)} needed, {format_bytes(free)} "
        f"available, {format_bytes(could)} could be freed by removing older releases"
    )
    if previous and free + could + previous >= needed:
        message += f" and {format_bytes(previous)} more by giving up the previous one"
        step = "--drop-previous gives it up; there is then nothing to roll back to"
    else:
        step = "free some space there, or choose a smaller recipe"
    return DoesNotFitError(message, shortfall_bytes=needed - free - could, next_step=step)
