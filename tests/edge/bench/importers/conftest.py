"""Tiny models, as the tests of engines have them."""

from tests.edge.engines.conftest import model_shelf

__all__ = ["model_shelf"]
