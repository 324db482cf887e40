"""Fixtures shared with the runtime tests, so that models are made once."""

from __future__ import annotations

from tests.report.test_page_in_chromium import browser
from tests.runtime.conftest import model_shelf

__all__ = ["browser", "model_shelf"]
