"""Whatever stands in config.json, a family converts or refuses it with one of our errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.layout import SourceTensor
from boardfit.converters.families.registry import family_for
from boardfit.edge.errors import EdgeError
from tests.converters.families.checkpoints import Case
from tests.converters.families.conftest import all_cases

BAD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 2**31, 2**70, 10**400, 0.5, float("nan"), float("inf"), "", "yarn",
    "llama3", [], [0], ["x", None], {}, {"rope_type": 3}, {"full_attention": 1}, {"factor": "x"},
)  # fmt: skip
# Absent from some cases, read by some families.
FURTHER_KEYS = ("rope_scaling", "rope_parameters", "head_dim", "layer_types", "sliding_window")


class Shapes:
    """A `Checkpoint` without values: every tensor is one zero, broadcast."""

    def __init__(self, case: Case, config: Mapping[str, Any]) -> None:
        self.config, self._shapes = config, case.shapes

    def names(self) -> Iterable[str]:
        return self._shapes

    def tensor(self, name: str) -> SourceTensor:
        data = np.broadcast_to(np.float32(0), self._shapes[name])
        return SourceTensor(name, "F32", self._shapes[name], data)


def describe(case: Case, config: Mapping[str, Any]) -> None:
    """Everything that a family does with a checkpoint before its data is read."""
    checkpoint = Shapes(case, config)
    family = family_for(config)(checkpoint)
    family.tensors()
    family.metadata()
    family.shape()
    family.notes()


def one_case_per_model_type() -> list[Case]:
    return list({case.config["model_type"]: case for case in all_cases()}.values())


def variants(config: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Every key of the configuration, and of objects in it, absent or with each bad value."""
    for key in (*config, *FURTHER_KEYS):
        yield f"{key} absent", {k: v for k, v in config.items() if k != key}
        for value in BAD_VALUES:
            yield f"{key} = {value!r}", {**config, key: value}
        if isinstance(config.get(key), dict):
            for what, inner in variants(config[key]):
                yield f"{key}: {what}", {**config, key: inner}


@pytest.mark.parametrize("case", one_case_per_model_type(), ids=lambda case: case.name)
def test_every_value_of_every_key(case: Case) -> None:
    describe(case, case.config)
    refused = 0
    for what, config in variants(case.config):
        try:
            describe(case, config)
        except EdgeError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).isprintable()
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
    assert refused > 50, "most of these values are impossible"
