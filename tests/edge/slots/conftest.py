"""The cargo of the flash tests."""

from tests.edge.flash.conftest import sample

__all__ = ["sample"]
