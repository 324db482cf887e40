"""Engines with tiny models, as the tests of engines have them."""

from tests.edge.engines.conftest import (
    engine_models,
    engine_name,
    model_shelf,
    models,
    random_engine,
    scripted_engine,
)

__all__ = [
    "engine_models",
    "engine_name",
    "model_shelf",
    "models",
    "random_engine",
    "scripted_engine",
]
