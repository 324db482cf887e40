"""The short version of scripts/power_cuts: real processes, real connections, random moments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.flash.conftest import need

SCRIPT = Path(__file__).parents[3] / "scripts/power_cuts"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.xdist_group("flash")
def test_after_every_cut_the_board_answers_and_a_rerun_finishes(
    sample: tuple[Path, Path], tmp_path: Path
) -> None:
    need("ssh")
    need("adb")
    results = tmp_path / "results.json"
    # The clock decides, so that a busy machine makes fewer cuts and not a failure; the limit is
    # there for a script that hangs.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--bundles", *map(str, sample), "--kills", "12", "--seconds",
         "45", "--gate", "0.1", "--work", str(tmp_path), "--json", str(results)],
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert set(found) == {"dir", "ssh", "adb"}
    assert all(record["cuts"] >= 1 for record in found.values()), found
