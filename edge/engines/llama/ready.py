"""What is checked of a file, and of this machine, before llama.cpp loads it."""

from __future__ import annotations

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.llama import library
from boardfit.edge.engines.llama.attention import quicker_attention
from boardfit.edge.engines.llama.checks import (
    check_graph,
    check_layers,
    check_numbers,
    check_vocabulary,
)
from boardfit.edge.engines.llama.estimate import (
    estimate_bytes,
    least_bytes,
    most_heads,
    shelf_bytes,
    state_bytes,
)
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.files.gguf import GgufHeader
from boardfit.edge.units import MIB

#: What all shelves of a context may take beside the planned cells.
SHELF_BYTES = 96 * MIB


def check_file(
    path: OpenedFile, header: GgufHeader, settings: EngineSettings, *, embeds: bool = False
) -> EngineSettings:
    """Refuse what the library would abort for; the settings with kernels that passed their proof.

    With `embeds` the vocabulary may be an encoder's.
    """
    check_layers(path, header)
    check_numbers(path, header)
    check_graph(path, header, settings.kv_type)
    settings = library.choose_buffers(header, settings)
    check_vocabulary(path, header, embeds=embeds)
    return settings


def check_memory(
    path: OpenedFile, header: GgufHeader, settings: EngineSettings, n_ctx: int
) -> EngineSettings:
    """Refuse a model that memory is too short for; the settings with attention chosen, and with as
    many shelves as there is room for.
    """
    free: int | None = None
    if settings.check_memory:
        planned = settings.need_bytes or estimate_bytes(path, header, n_ctx, settings)
        need = max(planned, least_bytes(path, header, n_ctx, settings))
        available = available_bytes()
        check_fits(need, available, path.name)
        free = available - need
    if settings.n_marks and state_bytes(header):
        settings = settings.replace(n_shelves=max(settings.n_shelves, settings.n_marks))
    if settings.n_shelves:
        each = max(1, shelf_bytes(path, header, settings))
        room = SHELF_BYTES if free is None else min(SHELF_BYTES, free)
        settings = settings.replace(n_shelves=min(settings.n_shelves, max(0, room) // each))
    if settings.flash_attn == "quicker":
        chosen = quicker_attention(settings, n_ctx, most_heads(path, header), free)
        settings = settings.replace(flash_attn=chosen)
    return settings
