"""Every family against upstream's converter: names, order, shapes, bytes, metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.families.registry import family_for
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.source.gguf import open_gguf
from tests.converters.families.checkpoints import Case
from tests.converters.families.conftest import all_cases
from tests.converters.families.oracle import differences

CASES = all_cases()


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_equals_upstream(case: Case, converted: Path) -> None:
    refused = converted / f"{case.name}.refused"
    assert not refused.exists(), f"upstream refused the case:\n{refused.read_text()}"
    found = differences(case, converted / case.name, converted / f"{case.name}.gguf")
    assert not found, "\n".join(found)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_same_model_from_upstreams_gguf(case: Case, converted: Path) -> None:
    """The two roads into the kit agree on shape and tensors."""
    upstream = converted / f"{case.name}.gguf"
    refused = converted / f"{case.name}.refused"
    assert not refused.exists(), f"upstream refused the case:\n{refused.read_text()}"
    checkpoint = SafetensorsCheckpoint(converted / case.name, case.config)
    family = family_for(case.config, keep_mtp=case.keep_mtp or False)(checkpoint)
    spec = open_gguf(upstream)
    assert spec.shape == family.shape()
    assert [(t.name, t.shape, t.keep) for t in spec.tensors] == [
        (t.name, t.shape, t.keep) for t in family.tensors()
    ]
