"""The engine `litert`: `.litertlm` files on the library of litert-lm-api.

The file's decoder runs on the LiteRT runtime inside that library, through its C interface, with our
own loop around it (`litert_library` says why not LiteRT-LM's sessions). So token ids and counts are
exact, a stop is honoured inside a step, prefixes are kept over turns, cut and saved, and logits are
those of the kernels that generate. Its limits: CPU only; text only; no speculative decoding; no
model whose weights or embeddings lie in sections of their own; the KV cache is as long, and of the
type, that the export made it.
"""

from __future__ import annotations

from collections.abc import Callable

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines import litert_library as library
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.kv_state import fingerprint
from boardfit.edge.engines.litert_container import SP_TOKENIZER, Container, read_container
from boardfit.edge.engines.litert_graph import LitertGraph, Weights
from boardfit.edge.engines.settings import EngineSettings, default_threads
from boardfit.edge.engines.signature_decoder import SignatureDecoder
from boardfit.edge.engines.step_engine import Identity, StepEngine
from boardfit.edge.engines.tflite_check import check_tflite
from boardfit.edge.engines.weight_cache import weight_cache
from boardfit.edge.errors import UnsupportedModelError

NAME = "litert"
_PACKAGE = "litert_lm"


class LiteRtLmEngine(StepEngine):
    """See the module."""

    @classmethod
    def open(
        cls,
        path: OpenedFile,
        settings: EngineSettings,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> LiteRtLmEngine:
        """Check the file, the CPU and the memory; load. See `boardfit.edge.engines.open_engine` for
        errors; EngineError on a CPU that the library would abort on.
        """
        container = read_container(path)
        tokenizer = load_tokenizer(container)
        library.check_cpu()
        section = container.model
        header = check_tflite(path, section.offset, section.n_bytes)
        if settings.check_memory:
            check_fits(
                settings.need_bytes or estimate_bytes(section.n_bytes),
                available_bytes(),
                path.name,
            )
        lib = library.load_library(_PACKAGE)
        n_threads = settings.n_threads or default_threads()
        version = library.version(_PACKAGE)
        mark = fingerprint(path, section.offset)
        with weight_cache(settings.use_mmap, mark, f"{NAME}-{version}", section.n_bytes) as cache:
            graph = LitertGraph.open(
                lib,
                Weights(path, section.offset, section.n_bytes),
                name=path.name,
                runtime=f"litert-lm-api {version}",
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
                build=f"litert-lm-api/{version}",
                model_name=path.name,
                fingerprint=mark,
                quant=header.quant,
                stop_texts=stop_texts(container, tokenizer),
            )
            return cls(decoder, tokenizer, identity, settings, n_threads)
        except BaseException:
            graph.close()
            raise


def load_tokenizer(container: Container) -> HfTokenizer:
    """The tokenizer, stop tokens and template that a container holds.

    Raises UnsupportedModelError for one that has only a SentencePiece model.
    """
    data = container.tokenizer_json()
    if data is None:
        kind = (
            "a SentencePiece tokenizer"
            if any(section.kind == SP_TOKENIZER for section in container.sections)
            else "no tokenizer"
        )
        raise UnsupportedModelError(
            f"{container.path.name}: holds {kind}; this engine reads Hugging Face's tokenizer.json",
            next_step="edge build MODEL --format tflite makes a file with one inside",
        )
    tokenizer = HfTokenizer(
        data,
        name=f"{container.path.name}: tokenizer",
        bos=container.start,
        template=container.template,
    )
    eog = set(container.stop_ids)
    for text in container.stop_texts:
        ids = tokenizer.tokenize(text, special=True)
        if len(ids) == 1:
            eog.add(ids[0])
    tokenizer.eog = frozenset(eog)
    tokenizer.eos_text = next((t for t in container.stop_texts if t), "")
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


def estimate_bytes(model_bytes: int) -> int:
    """Memory for a model without a plan: the file's weights mapped, once more in the layout of the
    kernels, and the library with its interpreter (measured: about 60 MiB beside the weights).
    """
    return 2 * model_bytes + (60 << 20)
