"""Tiny models whose memory has no past, as real families have it, with a vocabulary to chat in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.families.layout import to_f32
from boardfit.converters.families.registry import family_for
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from tests.converters.families.cases_hybrid import granite_hybrid, granite_hybrid_shapes
from tests.converters.families.cases_lfm2 import lfm2, lfm2_shapes
from tests.converters.families.cases_qwen35 import qwen35, qwen35_shapes
from tests.converters.families.checkpoints import Shapes, write_checkpoint
from tests.edge.engines import tiny_gguf

_VOCABULARY = {"vocab_size": tiny_gguf.N_VOCAB}
_GRANITE = granite_hybrid(**_VOCABULARY)
CONFIGS: dict[str, tuple[dict[str, object], Callable[[], Shapes]]] = {
    "qwen35": (qwen35(**_VOCABULARY), lambda: qwen35_shapes(qwen35(**_VOCABULARY))),
    "lfm2": (lfm2(**_VOCABULARY), lambda: lfm2_shapes(lfm2(**_VOCABULARY), 300)),
    "granite": (_GRANITE, lambda: granite_hybrid_shapes(_GRANITE)),
}
#: An answer begins with what its history leaves out, as models that think have it.
THINKING = tiny_gguf.TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif"
)


def write_hybrid(folder: Path, kind: str) -> Path:
    """One of the kinds, in float32 and with the template of a thinker."""
    config, shapes = CONFIGS[kind]
    write_checkpoint(folder / kind, config, shapes(), dtype="F32")
    checkpoint = SafetensorsCheckpoint(folder / kind, config)
    family = family_for(config)(checkpoint)
    path = folder / f"{kind}.gguf"
    writer = tiny_gguf.start(path, family.arch, n_ctx=4096, add_bos=True, template=THINKING)
    known = set(writer.kv_data[0])
    for entry in family.metadata():
        if entry.key not in known:
            item = entry.item_type if entry.value_type is GGUFValueType.ARRAY else None
            writer.add_key_value(entry.key, entry.value, entry.value_type, item)
    tensors = {
        tensor.name: np.reshape(
            to_f32(tensor.read(0, tensor.n_rows), tensor.source_type), tensor.shape
        )
        for tensor in family.tensors()
    }
    tiny_gguf.finish(writer, tensors)
    return path
