"""Proofs by force: which runs stand for which boards, and control groups that really limit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boardfit.device_profiles.catalog import find_profile, shipped_profiles
from boardfit.edge.errors import EdgeError
from boardfit.edge.units import MIB
from lab.memory.force import ControlGroup, force_lines, result_of, run_force
from lab.memory.force_boards import board_classes, claim_of, small_boards

RESULT = Path(__file__).parents[3] / "docs" / "validation" / "memory.json"


def kept() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text())
    return result


def test_every_board_of_at_most_8_gib_has_a_proof_that_holds_or_is_named() -> None:
    boards = [p.id for p in small_boards()]
    assert len(boards) > 50
    assert set(boards) <= set(shipped_profiles())
    entries = kept()["boards"]
    assert not set(entries) & set(kept()["unproved"])
    assert set(entries) | set(kept()["unproved"]) == set(boards)
    assert all(entry["held"] for entry in entries.values())
    assert result_of(kept()["proofs"]) == {k: kept()[k] for k in ("boards", "unproved", "proofs")}


def test_kept_proofs_are_of_full_contexts_within_what_the_boards_leave_free() -> None:
    for proof in kept()["proofs"]:
        planned, refused = proof["planned"], proof["refused"]
        free = [find_profile(board).free_ram_bytes for board in proof["boards"]]
        assert planned["limit_bytes"] < min(free) and planned["outcome"] == "runs"
        assert planned["n_ctx"] - 8 < planned["n_filled"] <= planned["n_ctx"]
        assert planned["read_bytes"] < 1.5 * planned["file_bytes"]
        assert refused["limit_bytes"] < max(free) < refused["predicted_bytes"]
        assert refused["outcome"] in ("killed", "thrashes")
    assert "DOES NOT HOLD" not in "\n".join(force_lines(kept()["proofs"]))


def test_boards_with_the_same_plan_share_a_proof() -> None:
    here = find_profile("n100-8gb")
    boards = ["raspberry-pi-4b-2gb", "raspberry-pi-cm4-2gb", "raspberry-pi-zero-2-w"]
    classes = board_classes([find_profile(board) for board in boards], here, None)
    assert [group.boards for group in classes] == [boards[2:], boards[:2]]
    for group in classes:
        for claim in group.claims:
            assert claim.planned.bytes_there <= claim.free_bytes < claim.refused.bytes_there
            assert claim.plans == group.smallest.plans


def test_a_board_that_repacks_more_gets_a_lower_limit_here() -> None:
    """The head of a tied model is repacked on Arm from six bits, and not on x86."""
    board, here = find_profile("jetson-orin-nano-4gb"), find_profile("n100-8gb")
    claim = claim_of(board, here, None)
    missing = claim.planned.missing_here
    assert missing > 200 * MIB if claim.planned.combination.repack else missing < MIB


def test_no_board_of_that_name_makes_no_proof(tmp_path: Path) -> None:
    assert run_force(tmp_path, None, "no such board") == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_a_control_group_kills_what_takes_more() -> None:
    try:
        group = ControlGroup.make(64 * MIB)
    except EdgeError as error:
        pytest.skip(f"{error}")
    text = "import sys; sys.stdin.read(); x = bytearray(b'x') * int(sys.argv[1]); print(len(x))"
    outcomes = []
    try:
        for n_bytes in (16 * MIB, 256 * MIB):
            command = [sys.executable, "-c", text, str(n_bytes)]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            (group.path / "cgroup.procs").write_text(str(child.pid))
            child.communicate(timeout=60)
            outcomes.append(child.returncode)
    finally:
        group.remove()
    assert outcomes == [0, -signal.SIGKILL]
    assert not group.path.exists()
