"""A language model in onnxruntime-genai: tokens in, logits out, the tokens whose KV it holds."""

import contextlib
import ctypes
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boardfit.edge.engines.abort import ChunkSizer
from boardfit.edge.engines.onnx.library import GenaiError, check
from boardfit.edge.engines.step_engine import Decoder, Runner
from boardfit.edge.errors import EngineError
from boardfit.edge.units import printable


class OnnxGraph(Runner):
    """Model and generator, freed together. `can_cancel`: a run ends at its next operator."""

    can_cancel = True

    def __init__(self, lib: Any, folder: Path, n_ctx: int, n_threads: int) -> None:
        """Load `folder` (`genai_config.json` and what it names). Raises GenaiError."""
        self._lib, self._n_ctx = lib, n_ctx
        self._cancelled = False
        self.model: Any = None
        self.generator: Any = None
        try:
            with self._temporary("Config", "OgaCreateConfig", str(folder).encode()) as config:
                overlay = {
                    "model": {
                        # One more than the context: a token that was drawn and is not evaluated
                        # takes no place in the KV cache, but one in the library's sequence.
                        "context_length": n_ctx + 1,
                        "decoder": {"session_options": {"intra_op_num_threads": n_threads}},
                    },
                    "search": {"max_length": n_ctx + 1},
                }
                check(lib, lib.OgaConfigOverlay(config, json.dumps(overlay).encode()))
                self.model = self._create("OgaCreateModelFromConfig", config)
            self.start_over()
        except BaseException:
            self.close()
            raise

    def start_over(self) -> None:
        """A generator with an empty cache."""
        lib = self._lib
        self._free("Generator", self.generator)
        self.generator = None
        with self._temporary("GeneratorParams", "OgaCreateGeneratorParams", self.model) as params:
            length = ctypes.c_double(self._n_ctx + 1)
            check(lib, lib.OgaGeneratorParamsSetSearchNumber(params, b"max_length", length))
            check(lib, lib.OgaGeneratorParamsSetSearchBool(params, b"do_sample", False))
            self.generator = self._create("OgaCreateGenerator", self.model, params)

    def append(self, tokens: Sequence[int]) -> bool:
        """Evaluate `tokens`. False if cancelled; the caller then cuts back. Raises EngineError."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        try:
            check(self._lib, self._lib.OgaGenerator_AppendTokens(self.generator, array, len(array)))
            return True
        except GenaiError as error:
            # The words as well as our mark: `allow` of a stream that begins may take the mark back
            # between the two halves of a `cancel` on another thread.
            if self._cancelled or "terminate" in str(error).lower():
                return False
            raise EngineError(f"onnxruntime-genai failed: {printable(str(error), 400)}") from None

    def rewind(self, length: int) -> None:
        """Cut the sequence to `length` tokens. Raises GenaiError where the model cannot."""
        check(self._lib, self._lib.OgaGenerator_RewindTo(self.generator, length))

    @contextlib.contextmanager
    def logits(self) -> Iterator[int]:
        """Address of the float32 logits after the last token, valid inside the block."""
        with self._temporary("Tensor", "OgaGenerator_GetLogits", self.generator) as tensor:
            yield self._create("OgaTensorGetData", tensor)

    def cancel(self) -> None:
        self._cancelled = True
        self._option(b"1")

    def allow(self) -> None:
        self._cancelled = False
        self._option(b"0")

    def _option(self, value: bytes) -> None:
        lib = self._lib
        if generator := self.generator:
            check(lib, lib.OgaGenerator_SetRuntimeOption(generator, b"terminate_session", value))

    def close(self) -> None:
        """Free everything; nothing may run."""
        for kind, name in (("Generator", "generator"), ("Model", "model")):
            handle = getattr(self, name)
            setattr(self, name, None)
            self._free(kind, handle)

    # ---- handles ------------------------------------------------------------------------------

    def _create(self, function: str, *arguments: Any) -> Any:
        out = ctypes.c_void_p()
        check(self._lib, getattr(self._lib, function)(*arguments, ctypes.byref(out)))
        return out.value

    @contextlib.contextmanager
    def _temporary(self, kind: str, function: str, *arguments: Any) -> Iterator[Any]:
        handle = self._create(function, *arguments)
        try:
            yield handle
        finally:
            self._free(kind, handle)

    def _free(self, kind: str, handle: Any) -> None:
        if handle:
            getattr(self._lib, f"OgaDestroy{kind}")(handle)


class OnnxDecoder(Decoder):
    """A decoder over model and generator."""

    def __init__(
        self, graph: OnnxGraph, *, n_ctx: int, n_logits: int, can_rewind: bool, chunks: ChunkSizer
    ) -> None:
        import numpy as np

        self._np = np
        self.graph: OnnxGraph = graph
        self.cached: list[int] = []
        self.n_ctx, self.n_logits = n_ctx, n_logits
        self.can_rewind = can_rewind
        self._chunks, self.lengths = chunks, (chunks.largest,)
        self._length = 0  # tokens in the library's own sequence
        self.logits = np.zeros(n_logits, np.float32)

    def prefill(self, tokens: Sequence[int], *, budget_s: float | None) -> bool:
        """As the base class; a step is as long as the speed so far allows."""
        taken = list(tokens[: self._chunks.next_size(interruptible=True)])
        started = time.monotonic()
        if not self._append(taken):
            return False
        self._chunks.measured(len(taken), time.monotonic() - started)
        return True

    def decode(self, token: int) -> bool:
        """Evaluate one token; `logits` are those after it. False if cancelled."""
        if not self._append([token]):
            return False
        with self.graph.logits() as address:
            ctypes.memmove(self.logits.ctypes.data, address, self.logits.nbytes)
        return True

    def _append(self, tokens: list[int]) -> bool:
        self._align()
        self._length += len(tokens)
        if not self.graph.append(tokens):
            return False
        self.cached.extend(tokens)
        return True

    def _align(self) -> None:
        """Cut the library's sequence to what is cached."""
        if self._length == len(self.cached):
            return
        if self.can_rewind:
            self.graph.rewind(len(self.cached))
        else:
            assert not self.cached  # `truncate` sees to it
            self.graph.start_over()
        self._length = len(self.cached)

    def can_cut(self, keep: int) -> bool:
        """A model that cannot rewind keeps all it has evaluated, or nothing."""
        return self.can_rewind or keep == len(self.cached) == self._length

    def truncate(self, keep: int) -> None:
        """Keep the first `keep` cached tokens, or none where the model's memory cannot be cut."""
        if not self.can_rewind and (keep < len(self.cached) or self._length != len(self.cached)):
            keep = 0
        del self.cached[keep:]
