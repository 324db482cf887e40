"""Tests that share an expensive fixture, or a place, really run in one worker of pytest-xdist."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("a-group")
@pytest.mark.parametrize("i", range(8))
def test_a_group_stays_together(i: int, request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@a-group"), "pytest and pytest-xdist do not fit"
