"""What a board demands beyond a key: growing numbers, its own name, no expired and no revoked."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.bundle.command import bundle as bundle_command
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UsageError
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.flash import FlashOptions, FlashReport, flash
from boardfit.edge.flash.key_command import key as key_command
from boardfit.edge.flash.trust import SignaturePolicy
from boardfit.edge.slots import layout
from boardfit.edge.slots.store import Slots
from boardfit.edge.trust.board_rules import (
    BOARD_RULES,
    BoardRules,
    Floor,
    Subject,
    parse_rules,
)
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.trust.pins import REVOKED_KEYS, TRUSTED_KEYS
from boardfit.edge.trust.release import ReleaseTerms, new_release, read_release
from boardfit.edge.trust.signing import SigningKey
from tests.edge.flash.cargo import PLAN, make_bundle
from tests.edge.flash.test_fault_points import PipeBoard
from tests.edge.flash.test_transfer import Quiet

Keys = tuple[SigningKey, SigningKey]
NOW = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)


def make(
    folder: Path, key: SigningKey, number: int, *, device: str = PLAN.device, **more: Any
) -> Path:
    """A signed bundle called "cargo" with this release number."""
    plan = dataclasses.replace(PLAN, device=device)
    made = make_bundle(folder, {"model.gguf": folder.name.encode() * 999}, plan=plan, **more)
    sign_bundle(made, key, new_release(number))
    return made


def put(bundle: Path, root: Path, **policy: Any) -> FlashReport:
    options = FlashOptions(gate=False, signature=SignaturePolicy(**policy))
    return flash(open_bundle(bundle), DirectoryBoard(root), options, Quiet())


def rules_at(root: Path) -> BoardRules:
    return parse_rules((root / BOARD_RULES).read_bytes(), "it")


# ---- numbers ------------------------------------------------------------------------------------


def test_the_first_signature_gives_a_growing_number_and_later_ones_keep_the_id(
    bundle: Path, other: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_bundle(bundle).release == ReleaseTerms()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796000000")
    sign_bundle(bundle, keys[0])
    first = open_bundle(bundle)
    sign_bundle(bundle, keys[1])
    assert open_bundle(bundle).id == first.id
    assert first.release.number == int(time.strftime("%Y%m%d%H%M%S", time.gmtime(1796000000)))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796000001")
    sign_bundle(other, keys[0])
    assert open_bundle(other).release.number > first.release.number
    with pytest.raises(UsageError, match="signed already"):
        sign_bundle(bundle, keys[0], new_release(7))
    (bundle / SIGNATURE).unlink()
    sign_bundle(bundle, keys[0])  # a new release of the same bytes
    assert open_bundle(bundle, verify=True).release.number > first.release.number


@pytest.mark.parametrize("road", ["dir", "shell"])
def test_an_older_signed_bundle_is_refused_and_accepted_by_hand(
    road: str, keys: Keys, tmp_path: Path
) -> None:
    one, two, three = (make(tmp_path / f"n{n}", keys[0], n) for n in (1, 2, 3))
    root = tmp_path / "board"
    board = DirectoryBoard(root) if road == "dir" else PipeBoard(root)

    def place(bundle: Path, **policy: Any) -> FlashReport:
        options = FlashOptions(gate=False, signature=SignaturePolicy(**policy))
        return flash(open_bundle(bundle), board, options, Quiet())

    place(two, required=True)
    before = sorted(root.rglob("*"))
    with pytest.raises(IntegrityError, match="release 1 of cargo is older than 2") as caught:
        place(one)
    assert "--allow-older" in str(caught.value.next_step)
    assert sorted(root.rglob("*")) == before  # before a byte is sent
    place(three)
    with pytest.raises(IntegrityError, match="is older than 3"):
        place(two)  # though it is there still: that is what a rollback is for
    report = place(one, allow_older=True)
    assert report.switched and "was 3 and is 1 now" in " ".join(report.notes)
    assert rules_at(root).floor("cargo").number == 1
    assert place(two).switched
    board.close()


def test_a_rollback_starts_and_does_not_lower_the_floor(keys: Keys, tmp_path: Path) -> None:
    one, two = (make(tmp_path / f"n{n}", keys[0], n) for n in (1, 2))
    root, slots = tmp_path / "board", Slots(DirectoryBoard(tmp_path / "board").files)
    put(one, root, required=True)
    put(two, root)
    slots.rollback()
    assert open_bundle(root / "current/bundle").release.number == 1
    assert rules_at(root).floor("cargo").number == 2
    assert put(one, root).switched is False  # repairs what is current
    assert rules_at(root).floor("cargo").number == 2
    slots.remove([open_bundle(two).id])
    with pytest.raises(IntegrityError, match="is older than 2"):
        put(make(tmp_path / "again", keys[0], 1), root)


def test_an_older_release_that_was_never_accepted_here_does_not_start(
    keys: Keys, tmp_path: Path
) -> None:
    """A person who writes the card, but not the machine's own folder, puts an old bundle there."""
    one, two = (make(tmp_path / f"n{n}", keys[0], n) for n in (1, 2))
    root = tmp_path / "board"
    put(two, root, required=True)
    shutil.copytree(one, root / "planted")
    with pytest.raises(IntegrityError, match="is older than 2"):
        open_bundle(root / "planted")
    unasked = open_bundle(root / "planted", check_signature=False, verify=False)
    with pytest.raises(IntegrityError, match="is older than 2"):
        _ = unasked.model
    slot = root / layout.release_folder(unasked.id)
    slot.mkdir()
    shutil.copytree(one, slot / "bundle")
    with pytest.raises(IntegrityError, match="is older than 2"):
        Slots(DirectoryBoard(root).files).rollback(unasked.id)


def test_names_have_floors_of_their_own(keys: Keys, tmp_path: Path) -> None:
    two = make(tmp_path / "n2", keys[0], 2)
    another = make(tmp_path / "n1", keys[0], 1, model={"name": "else", "arch": "llama"})
    put(two, tmp_path / "board", required=True)
    assert put(another, tmp_path / "board").switched
    floors = rules_at(tmp_path / "board").floors
    assert {name: floor.number for name, floor in floors.items()} == {"cargo": 2, "else": 1}


def test_keys_pinned_later_protect_what_is_current(keys: Keys, tmp_path: Path) -> None:
    one, two = (make(tmp_path / f"n{n}", keys[0], n) for n in (1, 2))
    root = tmp_path / "board"
    put(two, root)
    assert not (root / BOARD_RULES).exists()
    done = CliRunner().invoke(key_command, ["pin", f"dir:{root}", str(tmp_path / "one.pub")])
    assert done.exit_code == 0, done.output
    with pytest.raises(IntegrityError, match="is older than 2"):
        put(one, root)


def test_a_bundle_that_was_signed_before_there_were_numbers_counts_as_the_oldest(
    bundle: Path, keys: Keys, tmp_path: Path
) -> None:
    from boardfit.edge.bundle.sign import add_signature

    root = tmp_path / "board"
    add_signature(bundle, open_bundle(bundle).texts["manifest.json"], keys[0])
    assert put(bundle, root, required=True).switched
    put(make(tmp_path / "n1", keys[0], 1), root)
    with pytest.raises(IntegrityError, match="release 0 of cargo is older than 1"):
        put(bundle, root)


@pytest.mark.parametrize("value", [-1, 1.5, True, "7", 2**53, 10**400, None, [], {}])
@pytest.mark.parametrize("entry", ["release", "released_at", "expires_at"])
def test_entries_of_another_type_are_refused(entry: str, value: object, tmp_path: Path) -> None:
    if value is None and entry != "release":
        return
    with pytest.raises(InputError, match=entry):
        make_bundle(tmp_path / "odd", {"model.gguf": b"x"}, **{entry: value})
        open_bundle(tmp_path / "odd")


@pytest.mark.parametrize(
    "text",
    ["2027-6-30T00:00:00Z", "2027-06-30T00:00:00", "2027-06-30T24:00:00Z", "9" * 50, "٢027-06-30"],
)
def test_times_are_written_in_one_way(text: str) -> None:
    with pytest.raises(InputError, match="expected a time"):
        read_release({"expires_at": text}, "it")


# ---- expiry, and clocks that are wrong ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("1d", NOW + timedelta(days=1)),
        ("12w", NOW + timedelta(weeks=12)),
        ("1y", NOW + timedelta(days=365)),
        ("2027-06-30", datetime(2027, 6, 30, tzinfo=timezone.utc)),
    ],
)
def test_expiry_is_a_span_or_a_date(
    text: str, end: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(NOW.timestamp())))
    assert new_release(1, text).expires_at == end


@pytest.mark.parametrize("text", ["", "0d", "-1d", "90", "soon", "2020-01-01", "99999y", "1D"])
def test_other_expiries_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the expiry"):
        new_release(1, text)


class Clock(datetime):
    """A clock that stands."""

    at = NOW

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.at


@pytest.mark.parametrize(
    ("clock", "latest", "starts"),
    [
        (NOW + timedelta(days=1), None, True),
        (NOW + timedelta(days=31), None, False),
        (datetime(1970, 1, 1, tzinfo=timezone.utc), None, True),  # no battery: nobody knows
        (datetime(1970, 1, 1, tzinfo=timezone.utc), NOW + timedelta(days=31), False),
        (NOW - timedelta(days=900), NOW + timedelta(days=29), True),
    ],
)
def test_a_clock_before_the_dates_of_releases_is_not_believed(
    clock: datetime, latest: datetime | None, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boardfit.edge.trust.board_rules.datetime", Clock)
    monkeypatch.setattr(Clock, "at", clock)
    subject = Subject("0" * 64, "x", "y", ReleaseTerms(1, NOW, NOW + timedelta(days=30)))
    rules = BoardRules(latest=latest)
    if starts:
        rules.refuse(subject, "the board")
    else:
        with pytest.raises(IntegrityError, match="expired at 2026-12-30"):
            rules.refuse(subject, "the board")


def test_an_expired_release_is_neither_flashed_nor_started(
    bundle: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(NOW.timestamp())))
    sign_bundle(bundle, keys[0], new_release(expires="30d"))
    monkeypatch.setattr("boardfit.edge.trust.board_rules.datetime", Clock)
    root = tmp_path / "board"
    put(bundle, root, required=True)
    assert open_bundle(root / "current/bundle")
    monkeypatch.setattr(Clock, "at", NOW + timedelta(days=40))
    with pytest.raises(IntegrityError, match="expired"):
        open_bundle(root / "current/bundle")
    with pytest.raises(IntegrityError, match="expired"):
        put(bundle, tmp_path / "another", required=True)


def test_sign_and_verify_state_number_and_expiry(bundle: Path, keys: Keys, tmp_path: Path) -> None:
    words = ["sign", str(bundle), str(tmp_path / "one"), "--release", "7", "--expires", "1y"]
    done = CliRunner().invoke(bundle_command, words)
    assert "release 7 of 20" in done.output and "expires at 20" in done.output
    done = CliRunner().invoke(bundle_command, ["verify", str(bundle)])
    assert "release 7 of 20" in done.output
    done = CliRunner().invoke(bundle_command, words)
    assert isinstance(done.exception, UsageError)


# ---- which board --------------------------------------------------------------------------------


def test_a_bundle_signed_for_another_board_is_refused_everywhere(
    keys: Keys, tmp_path: Path
) -> None:
    mine = make(tmp_path / "mine", keys[0], 1)
    other = make(tmp_path / "other", keys[0], 2, device="raspberry-pi-5-8gb")
    root = tmp_path / "board"
    put(mine, root, required=True)  # the first one states which board this is
    with pytest.raises(IntegrityError, match="signed for a raspberry-pi-5-8gb"):
        put(other, root)
    shutil.copytree(other, root / "planted")
    with pytest.raises(IntegrityError, match="is a raspberry-pi-4b-4gb"):
        open_bundle(root / "planted")
    shutil.rmtree(root / "planted")
    report = put(other, root, other_board=True)
    assert "also accepts bundles for raspberry-pi-5-8gb" in " ".join(report.notes)
    assert open_bundle(root / "current/bundle") and rules_at(root).devices == (
        "raspberry-pi-4b-4gb", "raspberry-pi-5-8gb",
    )  # fmt: skip


def test_the_administrator_names_the_board(keys: Keys, tmp_path: Path) -> None:
    """Beside the machine's own key file, which the owner of the releases cannot write."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / TRUSTED_KEYS).write_text(keys[0].public.line + "\n")
    (folder / BOARD_RULES).write_bytes(BoardRules(devices=("jetson-orin-nano-8gb",)).to_bytes())
    with pytest.raises(IntegrityError, match="is a jetson-orin-nano-8gb"):
        open_bundle(make(tmp_path / "mine", keys[0], 1))


def test_pin_records_the_board_and_list_shows_it(keys: Keys, tmp_path: Path) -> None:
    root = tmp_path / "board"
    put(make(tmp_path / "mine", keys[0], 5), root, required=True)
    (root / BOARD_RULES).write_text("{")
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        open_bundle(root / "current/bundle")
    pub = str(tmp_path / "one.pub")
    words = ["pin", f"dir:{root}", pub, "--device", "raspberry-pi-4b-4gb"]
    done = CliRunner().invoke(key_command, words)
    assert done.exit_code == 0 and "accepts bundles for raspberry-pi-4b-4gb" in done.output
    assert open_bundle(root / "current/bundle")
    done = CliRunner().invoke(key_command, [*words[:-1], "raspberry-pi-44"])
    assert isinstance(done.exception, InputError)


def test_a_plan_for_the_machine_that_built_it_records_no_board(keys: Keys, tmp_path: Path) -> None:
    root = tmp_path / "board"
    put(make(tmp_path / "mine", keys[0], 1, device="this-machine"), root, required=True)
    assert rules_at(root).devices == ()


# ---- revoked keys -------------------------------------------------------------------------------


def run(*words: str) -> Any:
    return CliRunner().invoke(key_command, [*words, "--json"])


def test_a_revoked_key_counts_for_nothing_whatever_pins_it(keys: Keys, tmp_path: Path) -> None:
    root, target = tmp_path / "board", f"dir:{tmp_path / 'board'}"
    lost, good = (str(tmp_path / f"{name}.pub") for name in ("one", "two"))
    by_lost, by_good = (make(tmp_path / f"n{n}", keys[n], n + 1) for n in (0, 1))
    put(by_lost, root, required=True)
    done = run("revoke", target, lost)
    assert isinstance(done.exception, UsageError) and "last key" in str(done.exception)
    assert run("pin", target, good).exit_code == 0
    done = run("revoke", target, lost)
    assert isinstance(done.exception, UsageError)  # what is current was signed with it
    put(by_good, root)
    done = run("revoke", target, lost)
    assert done.exit_code == 0, done.exception
    shown = json.loads(done.output)
    assert [key["name"] for key in shown["pinned"]] == ["two"]
    assert [key["name"] for key in shown["revoked"]] == ["one"]
    assert "no rollback" in " ".join(shown["notes"])
    done = run("pin", target, lost)
    assert isinstance(done.exception, UsageError) and "is revoked" in str(done.exception)
    # By hand, or by the machine's administrator: the list of revoked keys wins.
    (root / TRUSTED_KEYS).write_text(f"{keys[0].public.line}\n{keys[1].public.line}\n")
    for refused in (
        lambda: put(by_lost, root),
        lambda: Slots(DirectoryBoard(root).files).rollback(),
    ):
        with pytest.raises(EdgeError, match="revoked"):
            refused()
    with pytest.raises(IntegrityError, match="revoked"):
        open_bundle(root / layout.bundle_folder(open_bundle(by_lost).id))
    assert open_bundle(root / "current/bundle")
    assert run("revoke", target, lost, "--undo").exit_code == 0
    assert not (root / REVOKED_KEYS).exists()


def test_first_use_pins_no_revoked_key(keys: Keys, tmp_path: Path) -> None:
    root = tmp_path / "board"
    root.mkdir()
    (root / REVOKED_KEYS).write_text(keys[0].public.line + "\n")
    with pytest.raises(IntegrityError, match="revoked"):
        put(make(tmp_path / "mine", keys[0], 1), root, required=True)
    assert not (root / TRUSTED_KEYS).exists()


def test_a_bundle_with_one_more_signature_outlives_the_revocation(
    keys: Keys, tmp_path: Path
) -> None:
    mine, folder = make(tmp_path / "mine", keys[0], 1), tmp_path / "etc"
    folder.mkdir()
    (folder / TRUSTED_KEYS).write_text(f"{keys[0].public.line}\n{keys[1].public.line}\n")
    (folder / REVOKED_KEYS).write_text(keys[0].public.line + "\n")
    with pytest.raises(IntegrityError, match="revoked"):
        open_bundle(mine)
    sign_bundle(mine, keys[1])
    assert isinstance(open_bundle(mine), Bundle)
    (folder / REVOKED_KEYS).write_text("")
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        open_bundle(mine)


def test_what_cannot_be_recorded_is_refused_before_anything_is_sent(
    keys: Keys, tmp_path: Path
) -> None:
    root = tmp_path / "board"
    root.mkdir()
    full = BoardRules(floors={str(n): Floor(1) for n in range(200)})
    (root / BOARD_RULES).write_bytes(full.to_bytes())
    with pytest.raises(IntegrityError, match="201 names"):
        put(make(tmp_path / "mine", keys[0], 1), root, required=True)
    (root / BOARD_RULES).unlink()
    model = {"name": "n" * 2**20, "arch": "llama"}
    with pytest.raises(IntegrityError, match="bytes are the most"):
        put(make(tmp_path / "long", keys[0], 1, model=model), root, required=True)
    assert not (root / "releases").exists()


# ---- the file -----------------------------------------------------------------------------------


def test_rules_survive_the_way_to_disk() -> None:
    rules = BoardRules(("a", "b"), {"x": Floor(3, ("1", "2")), "ü\n": Floor()}, NOW)
    assert parse_rules(rules.to_bytes(), "it") == rules
    assert parse_rules(BoardRules().to_bytes(), "it") == BoardRules()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"}, {"schema": 2}, {"devices": None}, {"devices": [1]}, {"devices": "pi"},
        {"floors": []}, {"floors": {"x": 3}}, {"floors": {"x": {"release": -1, "kept": []}}},
        {"floors": {"x": {"release": True, "kept": []}}}, {"latest": "soon"}, {"latest": 0},
        {"floors": {"x": {"release": 1, "kept": "all"}}}, {"floors": {"x": {"release": 1}}},
        {"floors": {str(n): {"release": 1, "kept": []} for n in range(201)}},
    ],
)  # fmt: skip
def test_a_damaged_rules_file_accepts_nothing(change: dict[str, Any]) -> None:
    document = {**json.loads(BoardRules().to_bytes()), **change}
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        parse_rules(json.dumps(document).encode(), "it")


@pytest.mark.parametrize("data", [b"", b"[" * 99999, b"null", b"[]", b"\xff", b"9" * 9999])
def test_what_is_no_rules_file_accepts_nothing(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="nothing is accepted"):
        parse_rules(data, "it")
