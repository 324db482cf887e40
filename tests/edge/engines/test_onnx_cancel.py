"""A cancelled run is no failure, however the cancel and what takes it back fall together."""

from __future__ import annotations

import pytest

from boardfit.edge.engines.onnx.decoder import OnnxDecoder
from boardfit.edge.engines.step_engine import StepEngine
from boardfit.edge.types import GenerationConfig
from tests.edge.engines.conftest import is_installed, opened
from tests.edge.engines.engine_models import ModelShelf
from tests.edge.engines.tiny_gguf import BOS
from tests.programs import skip_or_fail

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine-onnx")]


def test_the_librarys_own_words_are_understood(model_shelf: ModelShelf) -> None:
    """Our mark is taken back by a stream that begins while another thread is half through its
    `cancel`; then only the library knows.
    """
    if not is_installed("onnx"):
        skip_or_fail("onnx is not installed")
    with opened("onnx", model_shelf["onnx"].random) as engine:
        assert isinstance(engine, StepEngine)
        decoder = engine._lease.get()
        assert isinstance(decoder, OnnxDecoder)
        prompt, config = [BOS, 5], GenerationConfig(max_tokens=9, ignore_eos=True)
        whole = [event.token_id for event in engine.stream(prompt, config)]
        stream = engine.stream(prompt, config)
        first = next(stream)
        decoder.graph._option(b"1")
        # Nobody has asked this stream to stop: it goes on, and loses nothing.
        assert [first.token_id, *(event.token_id for event in stream)] == whole
