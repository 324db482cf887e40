"""The proof of the installed engine finds kernels that die or compute wrongly, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from boardfit.edge.probe import proof
from boardfit.edge.probe.ggml import find_engine_folder
from boardfit.edge.probe.proof import Failure, Proof, prove, prove_once
from boardfit.edge.probe.proof_kernels import WEIGHT_TYPES, list_cases
from tests.edge.probe.planted import RETURN, plant

pytestmark = pytest.mark.engine


def installed() -> Path:
    folder = find_engine_folder()
    assert folder is not None
    return folder


def edge(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, with the engine in `path` in place of the installed one."""
    env = {**os.environ} | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, "-m", "boardfit", *map(str, arguments)],
        capture_output=True, text=True, env=env, timeout=120,
    )  # fmt: skip


def repacked_types(folder: Path) -> set[str]:
    """Types for which the engine has a layout of its own on this CPU, asked in a child."""
    kinds, case = set(), ["", "", proof.PLAIN, 1]
    for finding in proof.run_cases(folder, 2, 0):
        case = finding.get("case", case)
        if case[2] != proof.PLAIN:
            (kinds.discard if "not_offered" in finding else kinds.add)(case[1])
    return kinds


def test_the_installed_engine_passes() -> None:
    found, is_complete = prove(installed(), 2)
    assert is_complete and found.failures == ()
    assert found.n_cases > 6 * len(WEIGHT_TYPES)


def test_every_type_that_weights_may_have_is_tried() -> None:
    """A type that a newer ggml adds must not go unproved."""
    never = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}
    kinds = {kind.name for kind in gguf.GGMLQuantizationType} - never
    assert kinds <= {case.kind for case in list_cases([], 2)}


@pytest.mark.parametrize(
    ("symbol", "kind"),
    [
        ("ggml_vec_dot_q6_K_q8_K", "Q6_K"),
        ("ggml_vec_dot_iq3_s_q8_K", "IQ3_S"),
        ("ggml_vec_dot_tq2_0_q8_K", "TQ2_0"),
    ],
)
def test_an_illegal_instruction_in_one_kernel_is_found(
    tmp_path: Path, symbol: str, kind: str
) -> None:
    found, is_complete = prove(plant(tmp_path, symbol) / "llama_cpp/lib", 2)
    assert is_complete
    assert {(f.kind, f.buffer) for f in found.failures} == {(kind, proof.PLAIN)}
    assert {f.n_threads for f in found.failures} == {1, 2}
    assert all("SIGILL" in f.why for f in found.failures)


def test_where_many_die_the_rest_is_not_tried(tmp_path: Path) -> None:
    """Each death takes a new process; an engine for another CPU dies everywhere."""
    kinds = ("q4_0_q8_0", "q4_1_q8_1", "q5_0_q8_0", "q5_1_q8_1", "q8_0_q8_0")
    folder = plant(tmp_path, *(f"ggml_vec_dot_{kind}" for kind in kinds)) / "llama_cpp/lib"
    found, is_complete = prove(folder, 2)
    why = {(f.kind, f.op): f.why for f in found.failures if f.buffer == proof.PLAIN}
    assert is_complete and why["Q4_0", "product"].startswith("SIGILL")
    assert why["Q6_K", "product"].startswith("not tried after others: SIGILL")
    assert not [f for f in found.failures if f.buffer != proof.PLAIN]


def test_a_kernel_that_computes_nothing_is_found(tmp_path: Path) -> None:
    found, _ = prove(plant(tmp_path, "ggml_vec_dot_q5_K_q8_K", code=RETURN) / "llama_cpp/lib", 2)
    assert {(f.kind, f.buffer) for f in found.failures} == {("Q5_K", proof.PLAIN)}
    assert all("computes" in f.why for f in found.failures)


def test_an_operation_on_plain_numbers_is_proved_too(tmp_path: Path) -> None:
    found, _ = prove(plant(tmp_path, "ggml_vec_silu_f32") / "llama_cpp/lib", 2)
    assert {f.op for f in found.failures} >= {"silu"}
    assert found.find_failures(set(), extra=False)  # every model needs it


def test_a_model_that_needs_the_kernel_is_refused_in_one_sentence(
    tmp_path: Path, sample_model: Path
) -> None:
    place = plant(tmp_path / "site", "ggml_vec_dot_q6_K_q8_K")
    done = edge("run", sample_model, "hello", "--json", path=place)
    record = json.loads(done.stdout)
    assert done.returncode == 5 and "Q6_K products: SIGILL" in record["message"]
    assert len(done.stderr.splitlines()) == 2 and "next: " in done.stderr


def test_without_the_faster_layout_the_model_still_answers(
    tmp_path: Path, sample_model: Path
) -> None:
    if "Q4_K" not in repacked_types(installed()):
        pytest.skip("this CPU has no faster layout for Q4_K: nothing to leave out")
    sizes = ("8x8", "8x4", "4x8", "4x4", "16x1")
    place = plant(tmp_path / "site", *(f"ggml_gemm_q4_K_{size}_q8_K" for size in sizes))
    right = edge("run", sample_model, "how warm is the board?")
    done = edge("run", sample_model, "how warm is the board?", path=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout == right.stdout
    assert "runs without them" in done.stderr and done.stderr.count("note:") == 1
    # The verdict is kept: the next start asks no child again.
    stamps = list((place / "llama_cpp").glob("engine-proof-*.json"))
    assert len(stamps) == 1 and "CPU_REPACK" in stamps[0].read_text()


def test_the_stamp_is_believed_for_the_same_build_only(tmp_path: Path) -> None:
    folder = plant(tmp_path, "ggml_vec_dot_q6_K_q8_K") / "llama_cpp/lib"
    first = prove_once(folder, 2)
    (stamp,) = folder.parent.glob("engine-proof-*.json")
    assert first.failures and proof.read_stamp(stamp, proof.make_key(folder)) == first
    kept = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({**kept, "failures": []}))
    assert prove_once(folder, 2).failures == ()  # read, not computed
    os.utime(folder / "libggml-cpu.so", ns=(1, 1))
    assert prove_once(folder, 2) == first


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kind": 3}', "[" * 100_000, '{"failures": [[1]]}', '{"failures": 7}'],
)
def test_a_damaged_stamp_counts_as_none(tmp_path: Path, text: str) -> None:
    stamp = tmp_path / "engine-proof-x.json"
    stamp.write_text(text)
    assert proof.read_stamp(stamp, "x") is None
    assert proof.read_stamp(tmp_path / "missing", "x") is None


def test_a_stamp_goes_to_the_cache_where_the_package_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "stamp_folders", lambda _: [tmp_path / "no", tmp_path / "cache"])
    (tmp_path / "no").write_text("a file, so that no folder can be made")
    folder = plant(tmp_path, "ggml_vec_dot_q6_K_q8_K") / "llama_cpp/lib"
    assert prove_once(folder, 2).failures
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_library_that_does_not_load_leaves_no_verdict(tmp_path: Path) -> None:
    folder = plant(tmp_path, "ggml_vec_dot_q6_K_q8_K") / "llama_cpp/lib"
    (folder / "libggml-cpu.so").write_bytes(b"\x7fELF, cut off")
    found, is_complete = prove(folder, 2)
    assert not is_complete and found.failures == ()


def test_failures_count_for_the_models_that_need_them() -> None:
    found = Proof(9, (
        Failure("product", "Q4_K", "plain", 1, "x"),
        Failure("experts", "Q6_K", "plain", 1, "x"),
        Failure("product", "Q8_0", "AMX", 2, "x"),
    ))  # fmt: skip
    assert not found.find_failures({("product", "Q6_K")}, extra=False)
    assert found.find_failures({("product", "Q4_K")}, extra=False)
    assert not found.find_failures({("product", "Q4_K")}, extra=True)
    assert found.find_failures({("product", "Q8_0")}, extra=True)
    assert str(found.failures[2]) == "Q8_0 products from AMX: x"


def test_where_no_child_can_be_started_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulator of one program starts no other."""
    monkeypatch.setattr(proof, "python_argv", lambda *_: [str(tmp_path / "missing")])
    assert prove(installed(), 2) == (Proof(1), False)
