"""Networks that the tests of ONNX have made."""

from tests.converters.formats.onnx.conftest import litert_python, networks

__all__ = ["litert_python", "networks"]
