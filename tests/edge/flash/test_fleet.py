"""Twenty boards at once, one of them broken; canaries; inventories that are wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.errors import InputError
from boardfit.edge.flash.fleet import FleetBoard, Inventory, parse_inventory, read_inventory
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from tests.edge.flash.boards import SshBoard, edge_command, ssh_fleet, write_inventory
from tests.edge.flash.conftest import need

N_BOARDS = 20


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[SshBoard]]]:
    """Twenty sshds, each with its own host key, port and root; one client configuration."""
    need("ssh")
    folder = tmp_path_factory.mktemp("fleet")
    with ssh_fleet(folder, N_BOARDS) as (_, boards):
        yield folder, boards


def flash_fleet(
    folder: Path, boards: list[SshBoard], bundle: Path, head: str, check: int
) -> dict[str, object]:
    inventory = write_inventory(folder / "boards.toml", boards, head)
    command = edge_command(
        "flash", str(bundle), "--inventory", str(inventory), "--force", "--no-gate", "--json",
        "--ssh-config", str(folder / "config"),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == check, done.stdout + done.stderr
    record: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return record


@pytest.mark.xdist_group("flash")
@pytest.mark.slow
def test_twenty_boards_and_one_fails(
    fleet: tuple[Path, list[SshBoard]], cargo: tuple[Path, Path]
) -> None:
    folder, boards = fleet
    boards[7].root.write_text("a file where the folder should be")
    record = flash_fleet(folder, boards, cargo[0], "parallel = 10\nmax_failures = 1", check=3)
    assert (record["n_flashed"], record["n_failed"], record["n_not_started"]) == (19, 1, 0)
    failed = record["boards"][7]  # type: ignore[index]
    assert failed["name"] == "pi-07" and failed["outcome"] == "failed" and failed["message"]
    for i, board in enumerate(boards):
        if i != 7:
            slots = Slots(LocalFiles(board.root))
            assert slots.current() == record["bundle"]
    boards[7].root.unlink()
    record = flash_fleet(folder, boards[6:9], cargo[0], "parallel = 3", check=0)
    sent = [board["report"]["n_sent"] for board in record["boards"]]  # type: ignore[attr-defined]
    assert sent[1] > 0 and sent[0] == sent[2] == 0, "finished boards are skipped"


@pytest.mark.xdist_group("flash")
@pytest.mark.slow
def test_too_many_failures_and_a_failing_canary_stop_it(
    fleet: tuple[Path, list[SshBoard]], cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, boards = fleet
    used = boards[:6]
    roots = [board.root for board in used]
    try:
        for i, board in enumerate(used):
            board.root = tmp_path / f"root{i}"
        used[1].root.write_text("in the way")
        record = flash_fleet(folder, used, cargo[0], "parallel = 2", check=3)
        outcomes = [board["outcome"] for board in record["boards"]]  # type: ignore[attr-defined]
        assert outcomes == ["flashed", "failed", "flashed", *["not started"] * 3]
        record = flash_fleet(folder, used[1:3], cargo[0], "max_failures = 5", check=3)
        outcomes = [board["outcome"] for board in record["boards"]]  # type: ignore[attr-defined]
        assert outcomes == ["failed", "not started"], "a failed canary ends it"
    finally:
        for board, root in zip(used, roots, strict=True):
            board.root = root


# ---- inventories ---------------------------------------------------------------------------------


def board(name: str, *, canary: bool = False) -> FleetBoard:
    return FleetBoard(name, f"ssh://{name}", canary)


def test_waves() -> None:
    boards = tuple(board(n) for n in "abcde")
    waves = Inventory(boards, parallel=2).waves()
    assert [[b.name for b in wave] for wave in waves] == [["a"], ["b", "c"], ["d", "e"]]
    canaries = Inventory((board("a"), board("b", canary=True), board("c", canary=True))).waves()
    assert [[b.name for b in wave] for wave in canaries] == [["b", "c"], ["a"]]


def test_an_inventory_as_in_the_manual(tmp_path: Path) -> None:
    path = tmp_path / "boards.toml"
    path.write_text(
        'parallel = 3\nmax_failures = 2\n[boards.kitchen]\ntarget = "ssh://pi@kitchen/opt/boardfit"\n'
        'canary = true\n[boards.hall]\ntarget = "adb://R58A00"\nbundle = "bundles/phone"\n'
    )
    found = read_inventory(path)
    assert (found.parallel, found.max_failures) == (3, 2)
    assert found.boards[0] == FleetBoard("kitchen", "ssh://pi@kitchen/opt/boardfit", True)
    assert found.boards[1].bundle == tmp_path / "bundles/phone"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 boards"),
        ("paralel = 3", "Did you mean 'parallel'"),
        ("parallel = '3'\n[boards.a]\ntarget = 'ssh://a'", "must be a whole number"),
        ("parallel = true\n[boards.a]\ntarget = 'ssh://a'", "must be a whole number"),
        ("parallel = 0\n[boards.a]\ntarget = 'ssh://a'", "1 to 256"),
        ("[boards.a]\n", "'target' is missing"),
        ("[boards.a]\ntarget = 'ssh://-oProxyCommand=x'", "boards.a: not a place"),
        ("[boards.a]\ntarget = 'ssh://a'\ncanari = true", "Did you mean 'canary'"),
        ("[boards.a]\ntarget = 'ssh://a'\ncanary = 1", "must be true or false"),
        ("[boards.'a b']\ntarget = 'ssh://a'", "a name has letters"),
        ("[boards.a]\ntarget = 'ssh://a'\n[boards.b]\ntarget = 'ssh://a'", "two boards"),
        ("boards = 3", "must be an object"),
        ("[boards]\na = 3", "each an object"),
        ("a = ", "boards.toml"),
    ],
)
def test_inventories_that_are_wrong(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "boards.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        read_inventory(path)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["boards", "target", "parallel", "canary", "a", ""]), inner),
))  # fmt: skip
def test_no_inventory_crashes(document: object) -> None:
    if isinstance(document, dict):
        try:
            parse_inventory(document, Path("x"))
        except InputError:
            return
