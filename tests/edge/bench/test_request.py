"""The command in a result repeats the run, without folders of the machine that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.bench.request import BenchRequest, parse_workload

MODEL = Path("/home/me/a model.gguf")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (BenchRequest(MODEL), ""),
        (BenchRequest(MODEL, quick=True, repeats=2, n_gen=8), " --quick --repeats 2 --gen 8"),
        (BenchRequest(MODEL, n_threads=2, n_ctx=512, kv_type="q8_0", cool_below=50.5),
         " --threads 2 --ctx 512 --kv-type q8_0 --cool-below 50.5"),
        (BenchRequest(MODEL, quick=True, sustained_min=2.0), " --protocol sustained --minutes 2"),
        (BenchRequest(MODEL, shapes=("x y=1x3",)), " --shape 'x y=1x3'"),
        (BenchRequest(MODEL, workload=parse_workload(None, "2s", n_requests=9)),
         " --workload mix --within 2s --requests 9"),
    ],
)  # fmt: skip
def test_the_command_repeats_the_run(request_: BenchRequest, words: str) -> None:
    assert request_.repeat_command() == f"edge bench 'a model.gguf'{words}"
