"""An engine over the signatures of a TFLite model, wherever the model and its tokenizer lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.kv_state import fingerprint
from boardfit.edge.engines.litert import library
from boardfit.edge.engines.litert.graph import LitertGraph, MappedWeights
from boardfit.edge.engines.litert.interpreter_graph import InterpreterGraph
from boardfit.edge.engines.litert.signature_decoder import SignatureDecoder, SignatureGraph
from boardfit.edge.engines.litert.tflite_check import TfliteHeader
from boardfit.edge.engines.litert.weight_cache import weight_cache
from boardfit.edge.engines.settings import EngineSettings, default_threads
from boardfit.edge.engines.step_engine import Identity, StepEngine

_Self = TypeVar("_Self", bound="SignatureEngine")


@dataclass(frozen=True)
class SignatureModel:
    """A checked model: where it lies in a file, its header, its tokenizer. `stop_texts` end an
    answer beside the tokenizer's tokens.
    """

    path: OpenedFile
    offset: int
    n_bytes: int
    header: TfliteHeader
    tokenizer: HfTokenizer
    stop_texts: tuple[str, ...] = ()


class SignatureEngine(StepEngine[SignatureDecoder]):
    """See the module."""

    @classmethod
    def load(
        cls: type[_Self],
        model: SignatureModel,
        package: str,
        settings: EngineSettings,
        progress: Callable[[int, int], None] | None,
    ) -> _Self:
        """Check the memory, load the model into the library of `package`."""
        path = model.path
        if settings.check_memory:
            planned = settings.need_bytes or estimate_bytes(model.n_bytes)
            check_fits(max(planned, model.n_bytes), available_bytes(), path.name)
        n_threads = settings.n_threads or default_threads()
        version, mark = library.version(package), fingerprint(path, model.offset)
        graph = _open_graph(model, package, settings, mark, n_threads, progress)
        try:
            decoder = SignatureDecoder(
                graph, path.name, settings.prefill_chunk, n_nodes=model.header.n_nodes
            )
            identity = Identity(
                version=version,
                build=f"{library.DISTRIBUTIONS[package]}/{version}",
                model_name=path.name,
                fingerprint=mark,
                quant=model.header.quant,
                kv_type=decoder.kv_type,
                stop_texts=model.stop_texts,
            )
            return cls(decoder, model.tokenizer, identity, settings, n_threads)
        except BaseException:
            graph.close()
            raise


def _open_graph(
    model: SignatureModel,
    package: str,
    settings: EngineSettings,
    mark: str,
    n_threads: int,
    progress: Callable[[int, int], None] | None,
) -> SignatureGraph:
    version = library.version(package)
    if package == "tflite_runtime":
        report = progress or (lambda done, total: None)
        report(0, 1)
        graph = InterpreterGraph.open(model.path, n_threads, version)
        report(1, 1)
        return graph
    lib = library.load_library(package)
    with weight_cache(settings.use_mmap, mark, f"{package}-{version}", model.n_bytes) as cache:
        return LitertGraph.open(
            lib,
            MappedWeights(model.path, model.offset, model.n_bytes),
            name=model.path.name,
            runtime=f"{library.DISTRIBUTIONS[package]} {version}",
            n_threads=n_threads,
            cache_path=cache,
            progress=progress,
        )


def estimate_bytes(model_bytes: int) -> int:
    """Memory for a model without a plan: the file's weights mapped, once more in the layout of the
    kernels, and the library with its interpreter (measured: about 60 MiB beside the weights).
    """
    return 2 * model_bytes + (60 << 20)
