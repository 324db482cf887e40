"""Flashes from end to end, as processes: a folder, a real sshd, a real adb."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import boardfit.edge.flash.flash as flash_module
from boardfit.edge.bundle.bundle import open_bundle, seal_bundle
from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.layout import bundle_folder
from boardfit.edge.slots.store import Slots
from tests.edge.flash.boards import AdbBoard, FolderBoard, SshBoard, edge_command
from tests.edge.flash.cargo import claim_incoming, make_bundle, random_bundle
from tests.edge.flash.test_fault_points import make_board
from tests.edge.flash.test_transfer import QUICK, Quiet

pytestmark = pytest.mark.xdist_group("flash")
Place = FolderBoard | SshBoard | AdbBoard


def edge(place: Place, *arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        edge_command(*arguments, *place.options), env={**os.environ, **place.env},
        capture_output=True, text=True, timeout=900, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done


def flash(place: Place, bundle: Path, *options: str, check: int = 0) -> dict[str, Any]:
    forced = [] if isinstance(place, FolderBoard) else ["--force"]
    done = edge(place, "flash", str(bundle), place.target, "--json", *forced, *options, check=check)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


@pytest.mark.engine
@pytest.mark.slow
def test_a_bundle_answers_on_the_board_and_the_way_back(
    place: Place, sample: tuple[Path, Path]
) -> None:
    a, b = (open_bundle(path).id for path in sample)
    first = flash(place, sample[0], "--min-speed", "0")
    assert first["switched"] and first["previous"] is None
    assert "light" in first["health"]["text"], first["health"]
    if not isinstance(place, FolderBoard):
        assert first["health"]["decode_tps"] > 0 and first["health"]["peak_rss_bytes"] > 0
    second = flash(place, sample[1], "--min-speed", "0")
    assert second["previous"] == a and second["n_sent"] < 10_000 < second["n_reused"]
    slots = Slots(LocalFiles(place.root))
    assert slots.current() == b
    back = json.loads(edge(place, "rollback", place.target, "--json").stdout)
    assert (back["before"], back["current"]) == (b, a) and slots.current() == a
    listed = edge(place, "slots", "list", place.target).stdout
    assert f"{a[:12]}  current" in listed and f"{b[:12]}  older" in listed
    assert "every byte as built" in edge(place, "slots", "verify", place.target).stdout
    edge(place, "slots", "remove", place.target, b[:10])
    assert slots.present() == [a]


def test_a_release_that_does_not_work_is_not_switched_to(
    place: Place, cargo: tuple[Path, Path]
) -> None:
    good = flash(place, cargo[0], "--no-gate")["bundle"]
    done = edge(
        place, "flash", str(cargo[1]), place.target,
        *([] if isinstance(place, FolderBoard) else ["--force"]), check=5,
    )  # fmt: skip
    assert "failed its health gate" in done.stderr and f"{good[:12]} stays current" in done.stderr
    slots = Slots(LocalFiles(place.root))
    assert slots.current() == good
    facts = slots.state().releases[open_bundle(cargo[1]).id]
    assert facts["failures"], facts


@pytest.mark.parametrize("place", ["ssh", "adb"], indirect=True)
def test_two_at_once(place: Place, cargo: tuple[Path, Path]) -> None:
    flash(place, cargo[0], "--no-gate")
    with LocalFiles(place.root).lock(0):
        refused = edge(place, "flash", str(cargo[1]), place.target, "--no-gate", "--force", check=2)
        assert "another flash of" in refused.stderr and "--wait" in refused.stderr
    commands = [
        edge_command("flash", str(path), place.target, "--no-gate", "--force", "--wait", "600")
        for path in cargo
    ]
    both = [
        subprocess.Popen(
            [*command, *place.options], env={**os.environ, **place.env},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for command in commands
    ]  # fmt: skip
    said = [process.communicate(timeout=900)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    slots = Slots(LocalFiles(place.root))
    assert slots.current() in slots.present() and len(slots.present()) == 2
    for release in slots.present():
        slots.verify(release)


def test_only_changed_blocks_of_a_changed_model_cross(sshd: SshBoard, tmp_path: Path) -> None:
    sshd.root = tmp_path / "with 'space"
    old = random_bundle(tmp_path / "old", 48 << 20)
    flash(sshd, old, "--no-gate")
    new = tmp_path / "new"
    subprocess.run(["cp", "-r", old, new], check=True)
    with (new / "model.gguf").open("r+b") as file:
        file.seek(20_000_000)
        file.write(os.urandom(1024))
    opened = open_bundle(old)
    kept = {k: v for k, v in opened.manifest.items() if k not in ("kind", "schema", "files")}
    seal_bundle(new, kept, {"model.gguf": "model"}, {})
    report = flash(sshd, new, "--no-gate")
    assert report["how"]["model.gguf"] == "patched"
    assert report["n_sent"] < 0.01 * opened.n_bytes
    Slots(LocalFiles(sshd.root)).verify(report["bundle"])


@pytest.mark.parametrize("place", ["ssh", "adb"], indirect=True)
def test_a_cut_transfer_goes_on(place: Place, tmp_path: Path) -> None:
    place.root = tmp_path / "root"
    bundle = open_bundle(random_bundle(tmp_path / "x", (20 << 20) + 99))
    part = claim_incoming(place.root, bundle) / "model.gguf"
    with (bundle.model_path).open("rb") as file:
        part.write_bytes(file.read((15 << 20) + 5))
    report = flash(place, bundle.path, "--no-gate", "--via", "stream")
    assert report["how"]["model.gguf"] == "resumed" and report["n_sent"] < 7 << 20
    Slots(LocalFiles(place.root)).verify(bundle.id)


def test_nothing_is_left_running(sshd: SshBoard, cargo: tuple[Path, Path], tmp_path: Path) -> None:
    """A killed sender's connection ends by itself, and with it the lock."""
    import psutil

    sshd.root = tmp_path / "root"
    command = edge_command("flash", str(cargo[0]), sshd.target, *sshd.options, "--force")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end_s = time.monotonic() + 300
    while not (sshd.root / ".lock").exists() and time.monotonic() < end_s:
        time.sleep(0.02)
    process.kill()
    process.wait()
    with LocalFiles(sshd.root).lock(200):
        pass
    mark = str(sshd.config)
    end_s = time.monotonic() + 300
    while time.monotonic() < end_s:
        alive = [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]
        if not alive:
            return
        time.sleep(0.5)
    pytest.fail(f"still running: {alive}")


@pytest.mark.parametrize(("kind", "step_kib"), [("dir", 80), ("shell", 160)])
def test_a_full_disk_at_every_size(
    kind: str, step_kib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of the disk: the new release is current, or the old one is, whole."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    old = make_bundle(tmp_path / "old", {"model.gguf": b"o" * 300_000})
    new = make_bundle(tmp_path / "new", {"model.gguf": b"n" * 400_000, "p": b"q" * 50_000})
    monkeypatch.setattr(flash_module, "SLACK_BYTES", -(10**9))  # no look before
    outcomes = set()
    for size_kib in range(200, 1400, step_kib):
        card = tmp_path / f"card{size_kib}"
        card.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(card)]
        subprocess.run(mount, check=True)
        board = make_board(kind, card / "root")
        try:
            slots = Slots(LocalFiles(card / "root"))
            ids = []
            for path in (old, new):
                try:
                    ids.append(flash_module.flash(open_bundle(path), board, QUICK, Quiet()).bundle)
                except DoesNotFitError as error:
                    assert "is full" in str(error)
            assert slots.current() == (ids[-1] if ids else None)
            for release in ids:
                slots.verify(release)
            outcomes.add(len(ids))
        finally:
            board.close()
            subprocess.run(["umount", "-l", str(card)], check=True)
    assert outcomes == {0, 1, 2}


def test_space_is_looked_at_before_anything_is_sent(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    card = tmp_path / "card"
    card.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(card)], check=True)
    try:
        bundle = random_bundle(tmp_path / "x", 2 << 20)
        done = edge(FolderBoard(card / "r"), "flash", str(bundle), f"dir:{card}/r", check=4)
        assert "needed" in done.stderr and "available" in done.stderr
        assert not list((card / "r/incoming").rglob("model.gguf"))
    finally:
        subprocess.run(["umount", "-l", str(card)], check=True)


def test_the_bundle_on_the_board_is_the_bundle(place: Place, cargo: tuple[Path, Path]) -> None:
    report = flash(place, cargo[0], "--no-gate")
    there = Path(place.root, bundle_folder(report["bundle"]))
    assert open_bundle(there, verify=True).id == report["bundle"]
    assert {p.relative_to(there) for p in there.rglob("*")} == {
        p.relative_to(cargo[0]) for p in cargo[0].rglob("*")
    }
    assert sorted(os.listdir(place.root)) == [".lock", "current", "releases", "state.json"]
    assert os.readlink(place.root / "current") == f"releases/{report['bundle']}"
