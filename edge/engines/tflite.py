"""The engine `tflite`: a plain `.tflite` of a language model, its tokenizer beside it.

It runs on the installed one of these: ai-edge-litert, through the same C interface as the engine
`litert` (no copy of the KV cache, a stop is honoured inside a step), or tflite-runtime 2.14, a
wheel of 2 MB for boards with an old system, through its interpreter (a stop waits for the end of a
step, so steps are kept short while a stop is possible).

The file comes from `edge build --format tflite`, or from litert-torch's export_hf with bundling
turned off. In its folder lie `tokenizer.json` and, as far as the model has them,
`tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines import litert_library as library
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.interpreter_graph import InterpreterGraph
from boardfit.edge.engines.kv_state import fingerprint
from boardfit.edge.engines.litert_graph import LitertGraph, Weights
from boardfit.edge.engines.settings import EngineSettings, default_threads
from boardfit.edge.engines.signature_decoder import Graph, SignatureDecoder
from boardfit.edge.engines.step_engine import Identity, StepEngine
from boardfit.edge.engines.tflite_check import check_tflite
from boardfit.edge.engines.weight_cache import weight_cache
from boardfit.edge.errors import EngineMissingError
from boardfit.edge.requirements import install_line

NAME = "tflite"
PACKAGES = ("ai_edge_litert", "tflite_runtime")


class TfliteEngine(StepEngine):
    """See the module."""

    @classmethod
    def open(
        cls,
        path: OpenedFile,
        settings: EngineSettings,
        *,
        progress: Callable[[int, int], None] | None = None,
        package: str | None = None,
    ) -> TfliteEngine:
        """Check the file and the memory, load. `package` is one of `PACKAGES`; None takes the first
        that is installed. See `boardfit.edge.engines.open_engine` for errors.
        """
        header = check_tflite(path)
        n_bytes = header.n_bytes
        tokenizer = HfTokenizer.of_model(path)
        package = package or next((p for p in PACKAGES if importlib.util.find_spec(p)), None)
        if package is None:
            raise EngineMissingError(
                "neither ai-edge-litert nor tflite-runtime is installed",
                next_step=install_line("tflite"),
            )
        if settings.check_memory:
            need = settings.need_bytes or 2 * n_bytes + (60 << 20)
            check_fits(need, available_bytes(), path.name)
        version = library.version(package)
        n_threads = settings.n_threads or default_threads()
        mark = fingerprint(path, 0)
        graph: Graph
        if package == "tflite_runtime":
            if progress is not None:
                progress(0, 1)
            graph = InterpreterGraph.open(path, n_threads, version)
            if progress is not None:
                progress(1, 1)
        else:
            lib = library.load_library(package)
            with weight_cache(settings.use_mmap, mark, f"{package}-{version}", n_bytes) as cache:
                graph = LitertGraph.open(
                    lib,
                    Weights(path, 0, n_bytes),
                    name=path.name,
                    runtime=f"{library.DISTRIBUTIONS[package]} {version}",
                    n_threads=n_threads,
                    cache_path=cache,
                    progress=progress,
                )
        try:
            decoder = SignatureDecoder(
                graph, path.name, settings.prefill_chunk, n_nodes=header.n_nodes
            )
            identity = Identity(
                name=NAME,
                version=version,
                build=f"{library.DISTRIBUTIONS[package]}/{version}",
                model_name=path.name,
                fingerprint=mark,
                quant=header.quant,
            )
            return cls(decoder, tokenizer, identity, settings, n_threads)
        except BaseException:
            graph.close()
            raise
