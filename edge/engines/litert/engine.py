"""The engines `litert` and `tflite`: language models as TFLite signatures, with our own loop around
them (`litert/library.py` gives the reason). So token ids and counts are exact, a stop is honoured
inside a step, prefixes are kept, cut and saved, and logits are those of the kernels that generate.

`litert` runs `.litertlm` files on the library of litert-lm-api. `tflite` runs a plain `.tflite`
with its tokenizer beside it: on ai-edge-litert, through the same C interface, or on tflite-runtime
2.14, a wheel of 2 MB for old boards, through its interpreter, where a stop waits for the end of a
step. The file comes from `edge build --format tflite`, or from litert-torch's export_hf without
bundling.

Limits: CPU only; text only; no speculative decoding; no model whose weights or embeddings lie in
sections of their own; the KV cache is as long, and of the type, that the export made it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.kv_state import fingerprint
from boardfit.edge.engines.litert import library
from boardfit.edge.engines.litert.container import SP_TOKENIZER, Container, read_container
from boardfit.edge.engines.litert.graph import LitertGraph, MappedWeights
from boardfit.edge.engines.litert.interpreter_graph import InterpreterGraph
from boardfit.edge.engines.litert.signature_decoder import SignatureDecoder, SignatureGraph
from boardfit.edge.engines.litert.tflite_check import TfliteHeader, check_tflite
from boardfit.edge.engines.settings import EngineSettings, default_threads
from boardfit.edge.engines.step_engine import Identity, StepEngine
from boardfit.edge.errors import EngineMissingError, UnsupportedModelError
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.progress import Progress

TFLITE_PACKAGES = ("ai_edge_litert", "tflite_runtime")
_Self = TypeVar("_Self", bound="SignatureEngine")


@dataclass(frozen=True)
class SignatureModel:
    """A checked model. `stop_texts` end an answer beside the tokenizer's tokens."""

    path: OpenedFile
    offset: int
    n_bytes: int
    header: TfliteHeader
    tokenizer: HfTokenizer
    stop_texts: tuple[str, ...] = ()


class SignatureEngine(StepEngine[SignatureDecoder]):
    """An engine over the signatures of a model, wherever it and its tokenizer lie."""

    @classmethod
    def load(
        cls: type[_Self],
        model: SignatureModel,
        package: str,
        settings: EngineSettings,
        progress: Progress | None,
    ) -> _Self:
        """Check the memory, load the model into the library of `package`."""
        path = model.path
        if settings.check_memory:
            # Without a plan: the weights mapped, once more in the layout of the kernels, and the
            # library with its interpreter (measured: about 60 MiB).
            planned = settings.need_bytes or 2 * model.n_bytes + (60 << 20)
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


class LiteRtLmEngine(SignatureEngine):
    """`.litertlm` files."""

    name = "litert"

    @classmethod
    def open(
        cls, path: OpenedFile, settings: EngineSettings, *, progress: Progress | None = None
    ) -> LiteRtLmEngine:
        """As `open_engine`; EngineError on a CPU that the library would abort on."""
        container = read_container(path)
        tokenizer = load_tokenizer(container)
        library.check_cpu()
        offset, n_bytes = container.model.offset, container.model.n_bytes
        header, stops = check_tflite(path, offset, n_bytes), stop_texts(container, tokenizer)
        model = SignatureModel(path, offset, n_bytes, header, tokenizer, stops)
        return cls.load(model, "litert_lm", settings, progress)


class TfliteEngine(SignatureEngine):
    """Plain `.tflite` files."""

    name = "tflite"

    @classmethod
    def open(
        cls,
        path: OpenedFile,
        settings: EngineSettings,
        *,
        progress: Progress | None = None,
        package: str | None = None,
    ) -> TfliteEngine:
        """As `open_engine`. `package` is one of TFLITE_PACKAGES; None: the first installed."""
        header = check_tflite(path)
        model = SignatureModel(path, 0, header.n_bytes, header, HfTokenizer.of_model(path))
        found = filter(importlib.util.find_spec, TFLITE_PACKAGES)
        package = package or next(found, None)
        if package is None:
            raise EngineMissingError(
                "neither ai-edge-litert nor tflite-runtime is installed",
                next_step=install_line("tflite"),
            )
        return cls.load(model, package, settings, progress)


def load_tokenizer(container: Container) -> HfTokenizer:
    """A container's tokenizer, stop tokens and template. Raises UnsupportedModelError for none."""
    data, path = container.tokenizer_json(), container.path
    if data is None:
        has_other = any(section.kind == SP_TOKENIZER for section in container.sections)
        kind = "a SentencePiece tokenizer" if has_other else "no tokenizer"
        raise UnsupportedModelError(
            f"{path.name}: holds {kind}; this engine reads Hugging Face's tokenizer.json",
            next_step="edge build MODEL --format tflite makes a file with one inside",
        )
    name, template = f"{path.name}: tokenizer", container.template
    tokenizer = HfTokenizer(data, name=name, bos=container.start, template=template)
    found = [tokenizer.tokenize(text, special=True) for text in container.stop_texts]
    tokenizer.eog = frozenset([*container.stop_ids, *(ids[0] for ids in found if len(ids) == 1)])
    tokenizer.eos_text = next(iter(container.stop_texts), "")
    return tokenizer


def stop_texts(container: Container, tokenizer: HfTokenizer) -> tuple[str, ...]:
    """Stops of more than one token that no stop token is part of. (litert-torch lists every token
    that a template's turn end could have been merged with: those hold the stop token itself.)
    """
    texts = []
    for text in container.stop_texts:
        ids = tokenizer.tokenize(text, special=True)
        if len(ids) > 1 and not any(map(tokenizer.is_eog, ids)):
            texts.append(text)
    return tuple(texts)


def _open_graph(
    model: SignatureModel,
    package: str,
    settings: EngineSettings,
    mark: str,
    n_threads: int,
    progress: Progress | None,
) -> SignatureGraph:
    version = library.version(package)
    report = progress or (lambda done, total: None)
    if package == "tflite_runtime":
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
            report=report,
        )


@contextlib.contextmanager
def weight_cache(wanted: bool, mark: str, engine: str, model_bytes: int) -> Iterator[Path | None]:
    """A file that keeps weights in the layout of XNNPACK's kernels, to be packed once and mapped
    from then on; None where none is wanted or there is no room. A new file gets its name only when
    the model is open. `mark` identifies the model, `engine` the library.
    """
    if not wanted:
        yield None
        return
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{mark[:24]}-{engine}-{_cpu_mark()}")
    path = cache_directory() / "xnnpack" / f"{name}.cache"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_there = path.is_file()
        has_room = shutil.disk_usage(path.parent).free > 2 * model_bytes
    except OSError:
        is_there = has_room = False
    if is_there or not has_room:
        yield path if is_there else None
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with contextlib.suppress(OSError):  # written or not: the model is open
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _cpu_mark() -> str:
    """A short name of the instruction set that the kernels were chosen for."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        known = (line for line in lines if line.lower().startswith(("features", "flags")))
        features = next(known, "")
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"
