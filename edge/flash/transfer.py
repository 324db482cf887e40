"""Find the files that the board lacks, and send them. No byte is sent twice.

Files come together in `incoming/<id>/bundle`, each checked there. What another release on the board
has is linked, a changed model is patched from the old one where rsync can, everything else is sent
and resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from boardfit.edge.bundle.bundle import MANIFEST, SUMS, Bundle
from boardfit.edge.errors import EdgeError, IntegrityError
from boardfit.edge.flash.board import Board
from boardfit.edge.slots import layout
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.progress import Progress, Reporter
from boardfit.edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE
from boardfit.edge.units import MIB

How = Literal["link", "patch", "send"]
#: Below this a patch costs more round trips than it saves bytes.
PATCH_LEAST_BYTES = 4 * MIB


@dataclass(frozen=True)
class Item:
    """One file to be brought. `source` is a file on the board that is linked or patched, `n_there`
    the bytes that an interrupted run has left, or all.
    """

    name: str
    n_bytes: int
    sha256: str
    how: How
    source: str | None = None
    n_there: int = 0

    @property
    def n_new_bytes(self) -> int:
        """Bytes that will be written on the board (a link costs nothing)."""
        return 0 if self.how == "link" else self.n_bytes - self.n_there


@dataclass
class Sent:
    """What a transfer came to, in bytes: `n_sent` crossed the connection (for patches both ways),
    `n_reused` were on the board already.
    """

    n_sent: int = 0
    n_reused: int = 0
    how: dict[str, str] = field(default_factory=dict)


def plan_items(
    wanted: Mapping[str, tuple[int, str]],
    arrived: Mapping[str, int],
    on_board: Mapping[str, str],
    basis: Mapping[str, str],
) -> list[Item]:
    """Decide for every file. Pure.

    `wanted`: name → (bytes, sha256). `arrived`: name → bytes of what lies in incoming and may be
    gone on with. `on_board`: sha256 → path of a file that should have it. `basis`: name → path of
    an older file to patch from.
    """
    items = []
    for name, (n_bytes, sha256) in wanted.items():
        how: How = "send"
        source = None
        n_there = arrived.get(name, 0)
        if n_there != n_bytes and sha256 in on_board:
            how, source = "link", on_board[sha256]
        elif n_there != n_bytes and name in basis and n_bytes >= PATCH_LEAST_BYTES:
            how, source = "patch", basis[name]
        items.append(Item(name, n_bytes, sha256, how, source, min(n_there, n_bytes)))
    return items


def wanted_files(bundle: Bundle) -> dict[str, tuple[int, str]]:
    """Every file of a bundle, those that describe it last: name → (bytes, sha256)."""
    wanted = {file.name: (file.n_bytes, file.sha256) for file in bundle.files}
    for name in (SIGNATURE, SUMS, MANIFEST):
        if (text := bundle.texts.get(name)) is not None:
            wanted[name] = (len(text), hashlib.sha256(text).hexdigest())
    return wanted


def bring_signature(board: Board, bundle: Bundle, folder: str) -> None:
    """Renew the signature of a release that is on the board: it may have been signed once more
    since.
    """
    data = bundle.signature
    if data is not None and board.files.read(f"{folder}/{SIGNATURE}", MAX_SIGNATURE_BYTES) != data:
        board.files.write(f"{folder}/{SIGNATURE}", data)


def plan_transfer(
    board: Board, slots: Slots, bundle: Bundle, wanted: Mapping[str, tuple[int, str]], folder: str
) -> list[Item]:
    """Look at what the board has and decide how to bring the `wanted` files into `folder`."""
    current, state = slots.current(), slots.state()
    order = [i for i in (current, *reversed(state.history)) if i]
    present = slots.present()
    releases = [i for i in dict.fromkeys([*order, *present]) if i in present and i != bundle.id]
    on_board: dict[str, str] = {}
    basis: dict[str, str] = {}
    for release_id in releases:
        try:
            old = slots.bundle(release_id)
        except EdgeError:
            continue  # damaged: it is no source of anything
        place = layout.bundle_folder(release_id)
        sizes = slots.files.tree(place)
        for file in old.files:
            if (entry := sizes.get(file.name)) is None or entry.n_bytes != file.n_bytes:
                continue
            on_board.setdefault(file.sha256, f"{place}/{file.name}")
            for new in bundle.files:
                if new.name == file.name or new.role == file.role == "model":
                    basis.setdefault(new.name, f"{place}/{file.name}")
    incoming = slots.files.tree(folder)
    needed = {made.removeprefix(f"{folder}/") for made in list_folders(folder, list(wanted))}
    fine = {name: e for name, e in incoming.items() if name in wanted and e.can_go_on}
    strangers = [name for name in incoming if name not in fine and name not in needed]
    slots.files.remove([f"{folder}/{name}" for name in strangers])
    return plan_items(
        wanted,
        {name: entry.n_bytes for name, entry in fine.items()},
        on_board,
        basis if board.can_patch() else {},
    )


def bring(
    board: Board, bundle: Bundle, plan: Sequence[Item], folder: str, reporter: Reporter
) -> Sent:
    """Bring every file of the plan into `folder` and read its hash back from the board. What is
    already there is verified too. Raises IntegrityError when a file arrives damaged twice,
    DoesNotFitError when the disk is full.
    """
    sent, names = Sent(), [item.name for item in plan]
    for made in list_folders(folder, names):
        board.files.make_folder(made)
    bar = _Bar(reporter, sum(item.n_bytes for item in plan if item.how != "link"))
    for item in plan:
        target = f"{folder}/{item.name}"
        if not (item.how == "link" and _link(board, item, target, sent)):
            _bring_bytes(board, bundle.path / item.name, item, target, sent, bar)
    board.files.sync(list_folders(folder, names))
    return sent


def _link(board: Board, item: Item, target: str, sent: Sent) -> bool:
    """Link a file that the board has; False when it differs from its manifest."""
    assert item.source is not None
    if board.files.digests([item.source])[item.source] != item.sha256:
        return False
    board.files.link(item.source, target)
    sent.n_reused += item.n_bytes
    sent.how[item.name] = "link"
    return True


def _bring_bytes(
    board: Board, source: Path, item: Item, target: str, sent: Sent, bar: _Bar
) -> None:
    files = board.files
    for attempt in (1, 2):
        start = bar.done
        n_there = item.n_there if attempt == 1 else 0
        offset = n_there if n_there == item.n_bytes else board.resume_from(n_there)
        crossed, how = 0, "there"
        if attempt == 1 and item.how == "patch" and item.source is not None:
            if not n_there:
                copy = f"{layout.INCOMING}/copy"
                files.remove([copy])
                files.copy(item.source, copy)
                files.rename(copy, target)
            crossed, how = board.patch(source, target), "patched"
        elif offset < item.n_bytes or not n_there:
            how = "resumed" if offset else "sent"
            bar.add(offset)
            crossed = board.send(source, target, offset, bar.add)
        bar.settle(start, item.n_bytes)
        sent.n_sent += crossed
        sent.n_reused += max(0, item.n_bytes - crossed)
        sent.how[item.name] = how
        if files.settle(target) == item.sha256:
            return
        # What an earlier run had left was damaged, or a cable is: once more, from the start.
        files.remove([target])
        bar.settle(start, 0)
    raise IntegrityError(
        f"{item.name} arrived at {board.place} with other bytes than were sent, twice",
        next_step="check the card (F3, badblocks) and the cable; has the bundle been edited?",
    )


def list_folders(folder: str, names: Sequence[str]) -> list[str]:
    """`folder` and every folder below it that the names need."""
    below = {f"{folder}/{n.rpartition('/')[0]}" for n in names if "/" in n}
    return sorted({folder, *below})


class _Bar:
    """Bytes of all files together."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._tell: Progress = reporter.progress
        self._total, self.done = total, 0

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        self._tell(min(self.done, self._total), self._total)

    def settle(self, start: int, n_bytes: int) -> None:
        self.done = start + n_bytes
        self._tell(min(self.done, self._total), self._total)
