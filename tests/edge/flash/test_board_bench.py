"""`edge slots bench`: a board measures itself, and the results come here as it wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.bench.store import append_results, read_results
from boardfit.edge.errors import InputError, IntegrityError, UsageError
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.board_bench import (
    RESULTS,
    bench_board,
    keep_results,
    take_results,
)
from tests.edge.flash.boards import SshBoard
from tests.edge.flash.conftest import need
from tests.edge.flash.test_boards import edge, flash
from tests.edge.flash.test_transfer import Quiet

RECORD: dict[str, Any] = {
    "run_id": "r1",
    "time": "2026-01-01T00:00:00+00:00",
    **{name: {} for name in ("kit", "engine", "machine", "settings")},
    "test": {"kind": "end-to-end"},
    "artifact": {"name": "toy"},
    "metrics": {"decode_tps": {"median": 3.5}},
}


def card_with_results(folder: Path, *run_ids: str) -> DirectoryBoard:
    """A board that measured, and whose results nobody has taken yet."""
    for run_id in run_ids:
        append_results(folder / RESULTS / f"{run_id}.jsonl", [{**RECORD, "run_id": run_id}])
    return DirectoryBoard(folder)


def test_results_that_an_earlier_connection_left_behind_come_too(tmp_path: Path) -> None:
    board = card_with_results(tmp_path / "card", "r1", "r2")
    (tmp_path / "card" / RESULTS / "notes.txt").write_text("not ours")
    output = tmp_path / "mine.jsonl"
    append_results(output, [{**RECORD, "run_id": "r0"}])
    written = [(tmp_path / "card" / RESULTS / f"{n}.jsonl").read_bytes() for n in ("r1", "r2")]
    assert [record["run_id"] for record in take_results(board, output)] == ["r1", "r2"]
    assert output.read_bytes().endswith(b"".join(written)), "byte for byte"
    assert [r["run_id"] for r in read_results([output]).records] == ["r0", "r1", "r2"]
    assert [p.name for p in (tmp_path / "card" / RESULTS).iterdir()] == ["notes.txt"]
    assert take_results(board, output) == []


def test_an_edited_result_is_refused_and_stays_there(tmp_path: Path) -> None:
    board = card_with_results(tmp_path / "card", "r1")
    path = tmp_path / "card" / RESULTS / "r1.jsonl"
    path.write_text(path.read_text().replace("3.5", "350.5"))
    with pytest.raises(IntegrityError, match="edited or damaged"):
        take_results(board, tmp_path / "mine.jsonl")
    assert path.exists() and not (tmp_path / "mine.jsonl").exists()


@pytest.mark.parametrize("data", [b"\x00\x01", b"{}\n", b'{"kind": "boardfit-result"}\n{'])
def test_what_is_no_result_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        keep_results(data, "ssh://pi/results/x.jsonl", tmp_path / "mine.jsonl")
    assert not (tmp_path / "mine.jsonl").exists()


def test_what_a_phones_program_measured_becomes_ours(tmp_path: Path) -> None:
    entry = {
        "build_commit": "c", "build_number": 1, "cpu_info": "Cortex-X3", "model_filename": "m.gguf",
        "model_type": "llama 3M Q4_0", "model_size": 10, "model_n_params": 20, "n_batch": 512,
        "n_threads": 2, "type_k": "f16", "n_prompt": 128, "n_gen": 0, "n_depth": 0,
        "samples_ns": [10**9, 10**9], "test_time": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    output = tmp_path / "mine.jsonl"
    keep_results(json.dumps(entry).encode() + b"\n", "adb://x/results/y.jsonl", output)
    (record,) = read_results([output]).records
    assert record["metrics"]["prefill_tps"]["median"] == 128
    assert record["machine"] and "imported" in record


def test_a_mounted_card_measures_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a mounted card") as caught:
        bench_board(DirectoryBoard(tmp_path), {}, tmp_path / "r.jsonl", Quiet())
    assert "ssh://" in (caught.value.next_step or "")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.xdist_group("flash")
def test_a_board_measures_itself(sshd: SshBoard, sample: tuple[Path, Path], tmp_path: Path) -> None:
    need("ssh")
    sshd.root = tmp_path / "böard root"
    results = tmp_path / "results.jsonl"
    words = ("slots", "bench", sshd.target, "--quick", "--repeats", "1", "--gen", "4",
             "-o", str(results))  # fmt: skip
    assert "no current release" in edge(sshd, *words, check=5).stderr
    report = flash(sshd, sample[0], "--no-gate")
    said = edge(sshd, *words)
    assert "prefill 128" in said.stdout and f"edge report {results}" in said.stderr
    records = read_results([results]).records
    assert {record["artifact"]["bundle_id"] for record in records} == {report["bundle"]}
    assert not list((sshd.root / RESULTS).iterdir())
