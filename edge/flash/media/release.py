"""Write a release into an ext4 file system that is not mounted. Layout, names and state file equal
those on a running board, so a later flash over ssh continues from there.
"""

import re
import stat
from collections.abc import Mapping
from pathlib import PurePosixPath

from boardfit.edge.bundle.bundle import MANIFEST, SUMS, Bundle
from boardfit.edge.disk.rooted import MARKER, MARKER_TEXT, foreign
from boardfit.edge.errors import EdgeError, InputError
from boardfit.edge.flash.flash import SLACK_BYTES, list_facts
from boardfit.edge.flash.gate import engine_bytes
from boardfit.edge.flash.media.ext4 import Ext4Files, Volume, plain
from boardfit.edge.flash.media.first_boot import UNIT_FOLDER, WANTS_FOLDER, unit_files
from boardfit.edge.flash.service_units import DEFAULT_ROOT
from boardfit.edge.flash.transfer import wanted_files
from boardfit.edge.flash.trust import SignatureAdmission, SignaturePolicy, accepted_rules, admit
from boardfit.edge.slots import layout
from boardfit.edge.slots.store import Slots
from boardfit.edge.trust.board_rules import BOARD_RULES
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.trust.pins import TRUSTED_KEYS, format_trusted_keys
from boardfit.edge.units import MIB

#: Where the releases lie in an image; `edge flash BUNDLE ssh://user@board/opt/boardfit` later on.
ROOT = DEFAULT_ROOT
#: The first user that Debian and its relatives make.
FIRST_UID = 1000
_MAX_PASSWD = 1024 * 1024
#: Block lists, and what a board's installer wants to leave free.
_SPARE = 16 * MIB


class ReleaseWriter:
    """One bundle on its way into one volume: `plan`, then, when there is room, `write`."""

    def __init__(
        self, volume: Volume, bundle: Bundle, owner: tuple[int, int] | None, place: str
    ) -> None:
        self.volume, self.bundle, self.place = volume, bundle, place
        self._files = Ext4Files(volume, ROOT, place)
        self._slots = Slots(self._files)
        self._first_size = volume.superblock().n_bytes
        self.owner, self.owner_text = owner or (0, 0), f"{owner[0]}:{owner[1]}" if owner else ""
        if owner is None:
            self.owner, self.owner_text = self._first_user()
        self.how: dict[str, str] = {}
        self.current: str | None = None
        self._wanted = wanted_files(bundle)
        self._links: dict[str, str] = {}
        self._units: dict[str, bytes] = {}
        self._made: set[str] = set()
        self._whole = False
        self.admission = SignatureAdmission()

    def plan(self, first_boot: bool, signature: SignaturePolicy) -> None:
        """Look at what is there. Raises InputError when a file stands where a folder has to be,
        UsageError when the releases' place holds something else or there is no engine to install,
        IntegrityError when keys are pinned in there and none of them signed the bundle.
        """
        folder = f"{ROOT}/{layout.release_folder(self.bundle.id)}"
        self._refuse_strange_folders(f"{folder}/bundle")
        self._refuse_foreign_release(folder)
        with self._slots.hold_lock():
            self.current = self._slots.current()
            self.admission = admit(self.bundle, self._slots, signature)
        present = self._slots.present()
        if self.bundle.id in present:
            folder = layout.bundle_folder(self.bundle.id)
            self._whole = not self._slots.damage(folder, self.bundle)
        self._links = {} if self._whole else self._same_files(present)
        if first_boot:
            self._refuse_strange_folders(WANTS_FOLDER)
            if self.volume.listing("/etc/systemd") is None:
                raise InputError(
                    f"{self.place}: there is no systemd in it, which --first-boot needs",
                    next_step="leave --first-boot out and install on the board",
                )
            self._units = unit_files(self.bundle, *self.owner)

    def _refuse_strange_folders(self, folder: str) -> None:
        for path in (*reversed(PurePosixPath(folder).parents), PurePosixPath(folder)):
            node = self.volume.node(str(path))
            if node is None:
                return
            if not stat.S_ISDIR(node.mode):
                raise InputError(
                    f"{self.place}: {path} is not a folder in there",
                    next_step="releases need it to be one; remove it, or use another image",
                )

    def _refuse_foreign_release(self, folder: str) -> None:
        """Only a release of ours is written over."""
        inside = self.volume.listing(folder)
        if inside and not (MARKER in inside and stat.S_ISREG(inside[MARKER].mode)):
            raise foreign(PurePosixPath(f"{self.place}:{folder}"))

    def _first_user(self) -> tuple[tuple[int, int], str]:
        text = (self.volume.read("/etc/passwd", _MAX_PASSWD) or b"").decode("utf-8", "replace")
        for line in text.splitlines():
            fields = line.split(":")
            if len(fields) == 7 and fields[2] == str(FIRST_UID) and fields[3].isdecimal():
                name = "".join(c for c in fields[0] if c.isprintable())[:32]
                return (FIRST_UID, int(fields[3])), f"{name} ({FIRST_UID}:{fields[3]})"
        return (0, 0), "root"

    def _same_files(self, present: list[str]) -> dict[str, str]:
        """sha256 → a whole file of an older release that has it."""
        wanted = {sha256 for _, sha256 in self._wanted.values()}
        found: dict[str, str] = {}
        for release_id in present:
            if release_id == self.bundle.id:
                continue
            try:
                old = self._slots.bundle(release_id)
            except EdgeError:
                continue  # damaged: it is no source of anything
            for file in old.files:
                path = f"{layout.bundle_folder(release_id)}/{file.name}"
                if file.sha256 in wanted and self._files.digests([path])[path] == file.sha256:
                    found.setdefault(file.sha256, path)
        return found

    @property
    def n_new_bytes(self) -> int:
        if self._whole:
            return 0
        return sum(n for n, sha256 in self._wanted.values() if sha256 not in self._links)

    @property
    def n_inodes(self) -> int:
        """Files, folders and links that will be made, and a few to spare."""
        return 2 * len(self._wanted) + len(self._units) + 32

    @property
    def unit_paths(self) -> list[str]:
        return [f"{UNIT_FOLDER}/{name}" for name in sorted(self._units)]

    @property
    def n_grown(self) -> int:
        """Bytes by which the file system was made larger since the beginning."""
        return self.volume.superblock().n_bytes - self._first_size

    def needed_bytes(self) -> int:
        """What must be free: the release in whole blocks, and the engine if the board is to install
        it.
        """
        block = self.volume.superblock().block_bytes
        total = self.n_new_bytes + block * len(self._wanted) + self.n_new_bytes // 256
        if self._units:
            total += engine_bytes(self.bundle) + _SPARE
        return total + SLACK_BYTES

    def choose_mode(self, name: str) -> int:
        """Permissions of a file: those who may run it on the host may run it there."""
        if name == MARKER:
            return 0o644
        path = self.bundle.path / name.removeprefix("bundle/")
        return 0o755 if path.stat().st_mode & 0o100 else 0o644

    def write(self, facts: Mapping[str, object]) -> None:
        """Write what `plan` has decided. Raises EngineError when debugfs cannot."""
        requests: list[str] = []
        (self.volume.work / "bundle").symlink_to(self.bundle.path.absolute())
        if self._whole:
            self.how = dict.fromkeys(self._wanted, "there")
            if SIGNATURE in self._wanted:  # it may have been signed by one more since
                name = f"{ROOT}/{layout.bundle_folder(self.bundle.id)}/{SIGNATURE}"
                requests += self._replace(f"bundle/{SIGNATURE}", name)
        else:
            requests += self._release()
        requests += self._unit_requests()
        facts = {**list_facts(self.bundle, self.admission), **facts}
        state = self._slots.state().with_release(self.bundle.id, **facts).activating(self.bundle.id)
        (self.volume.work / layout.STATE).write_bytes(state.to_bytes())
        requests += self._folder(ROOT)
        requests += self._replace(layout.STATE, f"{ROOT}/{layout.STATE}")
        if keys := self.admission.to_pin:
            (self.volume.work / TRUSTED_KEYS).write_bytes(format_trusted_keys(keys))
            requests += self._replace(TRUSTED_KEYS, f"{ROOT}/{TRUSTED_KEYS}")
        if self.admission.keys:
            rules = accepted_rules(self._slots, self.bundle, self.admission)
            (self.volume.work / BOARD_RULES).write_bytes(rules.to_bytes())
            requests += self._replace(BOARD_RULES, f"{ROOT}/{BOARD_RULES}")
        requests += self._removal(f"{ROOT}/{layout.CURRENT}")
        requests += self._link(
            f"{ROOT}/{layout.CURRENT}", layout.release_folder(self.bundle.id), self.owner
        )
        self.volume.change(requests)

    def _release(self) -> list[str]:
        folder = f"{ROOT}/{layout.release_folder(self.bundle.id)}"
        requests = self._removal(folder)
        made = {"", *(str(p) for name in self._wanted for p in PurePosixPath(name).parents)} - {"."}
        for place in (ROOT, f"{ROOT}/{layout.RELEASES}"):
            requests += self._folder(place)
        for path in (folder, *(f"{folder}/bundle/{p}".rstrip("/") for p in sorted(made))):
            requests += self._create_folder(path, self.owner)
        (self.volume.work / MARKER).write_bytes(MARKER_TEXT)
        requests += self._file(MARKER, f"{folder}/{MARKER}", 0o644, self.owner)
        counts: dict[str, int] = {}
        for name, (_, sha256) in self._wanted.items():
            target = f"{folder}/bundle/{name}"
            mode = self.choose_mode(f"bundle/{name}")
            source = self._links.get(sha256)
            if source is None or name in (MANIFEST, SUMS):
                requests += self._file(f"bundle/{name}", target, mode, self.owner)
                self.how[name] = "sent"
                continue
            old = f"{ROOT}/{source}"
            counts[old] = counts.get(old) or self._n_links(old)
            counts[old] += 1
            requests += [f"ln {plain(old)} {plain(target)}"]
            requests += [f"sif {plain(target)} links_count {counts[old]}"]
            requests += self._set_owner(target, 0o100000 | mode, self.owner)
            self.how[name] = "link"
        return requests

    def _unit_requests(self) -> list[str]:
        requests: list[str] = []
        if not self._units:
            return requests
        (self.volume.work / "units").mkdir()
        for name, text in sorted(self._units.items()):
            (self.volume.work / "units" / name).write_bytes(text)
            for folder in (UNIT_FOLDER, WANTS_FOLDER):
                requests += self._folder(folder, (0, 0))
            requests += self._removal(f"{UNIT_FOLDER}/{name}")
            requests += self._file(f"units/{name}", f"{UNIT_FOLDER}/{name}", 0o644, (0, 0))
            requests += self._removal(f"{WANTS_FOLDER}/{name}")
            requests += self._link(f"{WANTS_FOLDER}/{name}", f"{UNIT_FOLDER}/{name}", (0, 0))
        return requests

    def _n_links(self, path: str) -> int:
        found = re.search(rb"^Links: (\d+)", self.volume.ask(f"stat {plain(path)}")[0], re.M)
        return int(found[1]) if found else 1

    def _folder(self, path: str, owner: tuple[int, int] | None = None) -> list[str]:
        """A folder with its parents, those that are missing: `mkdir` of one that exists would
        damage the file system. What is above the releases belongs to root.
        """
        requests: list[str] = []
        for place in (*reversed(PurePosixPath(path).parents), PurePosixPath(path)):
            text = str(place)
            if text in self._made or self.volume.node(text) is not None:
                continue
            below = text == ROOT or text.startswith(f"{ROOT}/")
            requests += self._create_folder(text, owner or (self.owner if below else (0, 0)))
        return requests

    def _create_folder(self, path: str, owner: tuple[int, int]) -> list[str]:
        self._made.add(path)
        return [f"mkdir {plain(path)}", *self._set_owner(path, 0o040755, owner)]

    def _file(self, source: str, target: str, mode: int, owner: tuple[int, int]) -> list[str]:
        """`source` is relative to the volume's work folder."""
        folder, _, name = target.rpartition("/")
        return [
            f"cd {plain(folder)}",
            f"write {plain(source)} {plain(name)}",
            *self._set_owner(target, 0o100000 | mode, owner),
        ]

    def _replace(self, source: str, target: str) -> list[str]:
        return self._removal(target) + self._file(source, target, 0o644, self.owner)

    def _link(self, path: str, target: str, owner: tuple[int, int]) -> list[str]:
        return [
            f"symlink {plain(path)} {plain(target)}",
            *(f"sif {plain(path)} {key} {n}" for key, n in zip(("uid", "gid"), owner, strict=True)),
        ]

    def _set_owner(self, path: str, mode: int, owner: tuple[int, int]) -> list[str]:
        uid, gid = owner
        return [
            f"sif {plain(path)} uid {uid}",
            f"sif {plain(path)} gid {gid}",
            f"sif {plain(path)} mode 0{mode:o}",
        ]

    def _removal(self, path: str) -> list[str]:
        """Remove what lies at `path`, with everything below it."""
        node = self.volume.node(path)
        if node is None:
            return []
        if not stat.S_ISDIR(node.mode):
            return [f"rm {plain(path)}"]
        requests: list[str] = []
        for name in self.volume.listing(path) or {}:
            requests += self._removal(f"{path}/{plain(name)}")
        return [*requests, f"rmdir {plain(path)}"]
