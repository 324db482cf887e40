"""Killed at any point, continued, same bytes. With real SIGKILLs, not with pretended ones."""

from __future__ import annotations

import dataclasses
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.resume import journal_path, partial_path
from boardfit.converters.formats.gguf.write import write_gguf, write_many
from boardfit.converters.spec import ModelSpec
from boardfit.edge.errors import UsageError
from boardfit.edge.files.gguf import read_header
from tests.converters.formats.gguf.models import Dims, make_spec

pytestmark = pytest.mark.engine

DIMS = Dims(n_layer=6, n_vocab=600, n_ff=512)
SMALL = Dims(n_layer=3, n_vocab=300, n_ff=256)
ROOT = Path(__file__).resolve().parents[4]

# Writes two recipes in one pass, one of them in another order than the pass; prints a line for
# each slab, so that the parent can choose when to kill.
_CHILD = """
import sys
from pathlib import Path
from boardfit.converters.formats.gguf.write import write_many
from boardfit.converters.formats.gguf.recipe import load_recipe
from tests.converters.formats.gguf.test_quantize_resume import DIMS
from tests.converters.formats.gguf.models import make_spec
folder = Path(sys.argv[1])
jobs = [(load_recipe(r), folder / f"{r}.gguf") for r in ("q4_k_m", "f16")]
spec = make_spec(DIMS)
print("ready", flush=True)
done = write_many(spec, jobs, threads=1,
                  progress=lambda *at: print(*at, flush=True))
print("resumed", *(a.n_resumed for a in done), flush=True)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def run_and_kill(folder: Path, rng: random.Random) -> str | None:
    """Start, wait for a random number of slabs and a random moment more, kill. Returns the child's
    last words if it finished first.
    """
    with start(folder) as child:
        assert child.stdout is not None
        for _ in range(rng.randrange(0, 14)):
            line = child.stdout.readline().decode()
            if line.startswith("resumed") or not line:
                assert child.wait(60) == 0
                return line
        select.select([child.stdout], [], [], rng.random() * 0.05)
        time.sleep(rng.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        if child.wait(60) == -signal.SIGKILL:
            return None
        return child.stdout.read().decode().splitlines()[-1]


@pytest.mark.slow
def test_killed_at_random_points(tmp_path: Path) -> None:
    expected = {}
    for recipe_id in ("q4_k_m", "f16"):
        artifact = write_gguf(make_spec(DIMS), load_recipe(recipe_id), tmp_path / "whole.gguf")
        expected[recipe_id] = artifact.path.read_bytes()
    rng = random.Random("kills")
    kills, finished, resumed = 0, 0, 0
    folder = tmp_path / "0"
    folder.mkdir()
    while kills < 12:
        last = run_and_kill(folder, rng)
        if last is None:
            kills += 1
            # one may have got its name before the kill; a whole one is all that may be there
            for path in folder.glob("*.gguf"):
                assert path.read_bytes() == expected[path.stem]
                path.unlink()
        else:
            finished += 1
            resumed += any(int(n) for n in last.split()[1:])
            for recipe_id, data in expected.items():
                assert (folder / f"{recipe_id}.gguf").read_bytes() == data
            assert len(list(folder.iterdir())) == 2
            folder = tmp_path / str(finished)
            folder.mkdir()
    with start(folder) as child:
        assert child.stdout is not None
        lines = child.stdout.read().decode().splitlines()
    resumed += any(int(n) for n in lines[-1].split()[1:])
    for recipe_id, data in expected.items():
        assert (folder / f"{recipe_id}.gguf").read_bytes() == data
    assert resumed, "no run continued an earlier one: the test proves nothing"


class Stop(BaseException):
    """Stands for Ctrl-C: not an Exception, so the work so far is kept."""


def interrupt(spec: ModelSpec, out: Path, after: int, recipe_id: str = "q4_0") -> None:
    """Leave a partial file with at least one tensor promised by the journal."""

    def progress(done: int, total: int) -> None:
        nonlocal after
        after -= 1
        if after == 0:
            raise Stop

    with pytest.raises(Stop):
        write_gguf(spec, load_recipe(recipe_id), out, progress=progress)
    assert not out.exists()
    assert partial_path(out).exists() and journal_path(out).exists()


def finish(spec: ModelSpec, out: Path, recipe_id: str = "q4_0") -> int:
    """Write on; the result must be what an uninterrupted run gives. Returns tensors taken over."""
    artifact = write_gguf(spec, load_recipe(recipe_id), out)
    whole = write_gguf(spec, load_recipe(recipe_id), out.with_name("whole.gguf"))
    assert out.read_bytes() == whole.path.read_bytes()
    assert artifact.sha256 == whole.sha256
    assert not partial_path(out).exists() and not journal_path(out).exists()
    return artifact.n_resumed


def test_an_interrupt_keeps_the_work(tmp_path: Path) -> None:
    spec, out = make_spec(SMALL), tmp_path / "out.gguf"
    interrupt(spec, out, after=12)
    assert finish(spec, out) > 0


def test_another_source_recipe_or_metadata_starts_over(tmp_path: Path) -> None:
    spec, out = make_spec(SMALL), tmp_path / "out.gguf"
    other = make_spec(SMALL, seed=5)
    renamed = dataclasses.replace(spec, metadata=spec.metadata[:-1])
    for changed, recipe_id in ((other, "q4_0"), (spec, "q4_1"), (renamed, "q4_0")):
        interrupt(spec, out, after=12)
        assert finish(changed, out, recipe_id) == 0
        out.unlink()


def test_a_source_file_edited_in_between_starts_over(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x" * 10)
    spec, out = make_spec(SMALL), tmp_path / "out.gguf"
    source = dataclasses.replace(
        spec.source, location=str(tmp_path), files={"model.safetensors": 10}
    )
    spec = dataclasses.replace(spec, source=source)
    interrupt(spec, out, after=12)
    os.utime(weights, ns=(1, 1))
    assert finish(spec, out) == 0


@pytest.mark.parametrize(
    "damage", ["data", "header", "short", "journal-empty", "journal-rubbish", "journal-hash"]
)
def test_damage_in_between_starts_over(damage: str, tmp_path: Path) -> None:
    spec, out = make_spec(SMALL), tmp_path / "out.gguf"
    interrupt(spec, out, after=12)
    partial, journal = partial_path(out), journal_path(out)
    with partial.open("r+b") as file:
        if damage in ("data", "header"):
            at = 10 if damage == "header" else read_header(partial).data_offset + 100
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        elif damage == "short":
            file.truncate(partial.stat().st_size - 1)
    lines = journal.read_text().splitlines()
    if damage == "journal-empty":
        journal.write_text("")
    elif damage == "journal-rubbish":
        journal.write_bytes(b"\xff\x00rubbish\n" * 3)
    elif damage == "journal-hash":
        journal.write_text("\n".join([lines[0], "0" * 64, *lines[2:]]))
    assert finish(spec, out) == 0


def test_a_torn_last_line_costs_one_tensor(tmp_path: Path) -> None:
    spec, out = make_spec(SMALL), tmp_path / "out.gguf"
    interrupt(spec, out, after=14)
    journal = journal_path(out)
    lines = journal.read_text().splitlines()
    assert len(lines) > 2
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][: len(lines[-1]) // 2])
    assert finish(spec, out) == len(lines) - 2


def test_damage_costs_what_lies_behind_it(tmp_path: Path) -> None:
    """As after a power cut, when the journal is on the disk and the last data is not."""
    spec, out = make_spec(SMALL), tmp_path / "out.gguf"
    interrupt(spec, out, after=14)
    promised = len(journal_path(out).read_text().splitlines()) - 1
    header = read_header(partial_path(out))
    last = sorted(header.tensors, key=lambda tensor: tensor.offset)[promised - 1]
    with partial_path(out).open("r+b") as file:
        file.seek(header.data_offset + last.offset)
        file.write(bytes(last.nbytes))
    assert finish(spec, out) == promised - 1


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    spec, out = make_spec(SMALL), tmp_path / "out.gguf"

    def progress(done: int, total: int) -> None:
        with pytest.raises(UsageError, match="another process is writing"):
            write_gguf(spec, load_recipe("q8_0"), out)

    write_gguf(spec, load_recipe("q8_0"), out, progress=progress)
    assert out.exists()


def test_outputs_of_one_pass_resume_each_from_its_own_point(tmp_path: Path) -> None:
    spec = make_spec(SMALL)
    first, second = tmp_path / "q4_0.gguf", tmp_path / "q8_0.gguf"
    interrupt(spec, first, after=12)
    artifacts = write_many(spec, [(load_recipe("q4_0"), first), (load_recipe("q8_0"), second)])
    assert artifacts[0].n_resumed > 0 and artifacts[1].n_resumed == 0
    for artifact, recipe_id in zip(artifacts, ("q4_0", "q8_0"), strict=True):
        alone = write_gguf(spec, load_recipe(recipe_id), tmp_path / "alone.gguf")
        assert artifact.sha256 == alone.sha256
