"""The engine `litert`: `.litertlm` files on the library of litert-lm-api.

The file's decoder runs on the LiteRT runtime inside that library, through its C interface, with our
own loop around it (`litert/library.py` gives the reason). So token ids and counts are exact, a stop
is honoured inside a step, prefixes are kept over turns, cut and saved, and logits are those of the
kernels that generate.

Its limits: CPU only; text only; no speculative decoding; no model whose weights or embeddings lie
in sections of their own; the KV cache is as long, and of the type, that the export made it.
"""

from __future__ import annotations

from collections.abc import Callable

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.litert import library
from boardfit.edge.engines.litert.container import SP_TOKENIZER, Container, read_container
from boardfit.edge.engines.litert.signature_engine import SignatureEngine, SignatureModel
from boardfit.edge.engines.litert.tflite_check import check_tflite
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import UnsupportedModelError

_PACKAGE = "litert_lm"


class LiteRtLmEngine(SignatureEngine):
    """See the module."""

    name = "litert"

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
        place = container.model
        model = SignatureModel(
            path,
            place.offset,
            place.n_bytes,
            check_tflite(path, place.offset, place.n_bytes),
            tokenizer,
            stop_texts(container, tokenizer),
        )
        return cls.load(model, _PACKAGE, settings, progress)


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
