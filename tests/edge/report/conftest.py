"""Fixtures shared with the runtime tests, so that models are made once."""

from __future__ import annotations

from tests.edge.engines.conftest import model_shelf
from tests.edge.report.test_page_in_chromium import browser

__all__ = ["browser", "model_shelf"]
