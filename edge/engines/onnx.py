"""The engine `onnx`: a folder that onnxruntime-genai's model builder wrote, or
`edge build --format onnx`. The path is that of `model.onnx`; beside it lie its data,
`genai_config.json` and the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from boardfit.edge.disk.opened_file import OpenedFile, linked_folder
from boardfit.edge.engines import onnx_library as library
from boardfit.edge.engines.abort import ChunkSizer
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.kv_state import fingerprint
from boardfit.edge.engines.onnx_check import GenaiFolder, check_folder
from boardfit.edge.engines.onnx_decoder import OnnxDecoder, OnnxGraph
from boardfit.edge.engines.settings import DEFAULT_N_CTX, EngineSettings, default_threads
from boardfit.edge.engines.step_engine import Identity, StepEngine, choose_n_ctx
from boardfit.edge.errors import EngineError, UnsupportedModelError
from boardfit.edge.types import EngineInfo
from boardfit.edge.units import printable

NAME = "onnx"
#: Most tokens of a prefill step. The runtime's attention computes every score of a step, those that
#: its mask hides too: four steps of 128 take 0.9 of the time of one of 512 (0.5B, x86-64), and the
#: products are no quicker with more rows.
_LONGEST_STEP = 128


class OnnxEngine(StepEngine):
    """See the module."""

    @classmethod
    def open(
        cls,
        path: OpenedFile,
        settings: EngineSettings,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> OnnxEngine:
        """Check the folder and the memory, load. See `boardfit.edge.engines.open_engine` for
        errors.
        """
        source = check_folder(path)
        n_ctx = choose_n_ctx(
            source.n_ctx, settings.n_ctx or min(source.n_ctx, DEFAULT_N_CTX), path.name
        )
        tokenizer = HfTokenizer.of_model(path)
        tokenizer.eog = tokenizer.eog | frozenset(source.eog)
        if settings.check_memory:
            need = settings.need_bytes or source.need_bytes(n_ctx)
            check_fits(need, available_bytes(), path.name)
        n_threads = settings.n_threads or default_threads()
        lib = library.load_library()
        if progress is not None:
            progress(0, 1)
        try:
            with linked_folder([source.config_file, *source.model.files]) as folder:
                graph = OnnxGraph(lib, folder, n_ctx, n_threads)
        except library.GenaiError as error:
            words = str(error).replace(f"{folder}", f"{path.parent}")
            raise load_error(path.name, words) from None
        if progress is not None:
            progress(1, 1)
        try:
            decoder = OnnxDecoder(
                graph,
                n_ctx=n_ctx,
                n_logits=source.n_vocab,
                can_rewind=source.can_rewind,
                chunks=ChunkSizer(
                    settings.prefill_chunk or min(settings.n_batch, _LONGEST_STEP),
                    source.n_nodes,
                    settings.prefill_chunk,
                ),
            )
            identity = Identity(
                name=NAME,
                version=library.version(),
                build=f"onnxruntime-genai/{library.version()} "
                f"onnxruntime/{library.runtime_version()}",
                model_name=path.name,
                fingerprint=fingerprint(path, 0),
                quant=source.quant,
            )
            engine = cls(decoder, tokenizer, identity, settings, n_threads)
            engine._source = source
            return engine
        except BaseException:
            graph.close()
            raise

    _source: GenaiFolder

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> NoReturn:
        """Raises UnsupportedModelError: the library gives its cache out and takes none in."""
        self._claims.get()
        raise UnsupportedModelError(
            "onnxruntime-genai cannot take a saved KV state back in",
            next_step="the conversation itself can be replayed; llama_cpp and litert save states",
        )

    def restore_prefix(self, path: Path) -> NoReturn:
        """Raises UnsupportedModelError, like `save_prefix`."""
        self.save_prefix(path)

    def _kv_type(self) -> str:
        return self._source.kv_type

    def describe(self) -> EngineInfo:
        info = super().describe()
        details: dict[str, Any] = {
            **info.details,
            "can_save_prefix": False,
            "can_cut_prefix": self._source.can_rewind,
            "model_type": self._source.type,
            "runtime": f"onnxruntime {library.runtime_version()}",
        }
        return replace(info, details=details)


def load_error(name: str, words: str) -> UnsupportedModelError | EngineError:
    """What went wrong when the library refused a model, from its own words."""
    runtime = f"onnxruntime {library.runtime_version()}"
    words = printable(" ".join(words.split()), 400)
    unknown = re.search(r"([\w.]+)\((-?\d+)\) is not a registered function/op", words)
    opset = re.search(r"Opset (\d+) is under development|support for domain ([\w.]+) is", words)
    if unknown:
        return UnsupportedModelError(
            f"{name}: {runtime} has no operator {unknown[1]} (version {unknown[2]})",
            next_step="install a newer onnxruntime, or build the model again with this boardfit",
        )
    if opset:
        return UnsupportedModelError(f"{name}: newer than {runtime}: {words}")
    return EngineError(f"{name}: onnxruntime-genai does not load it: {words}")
