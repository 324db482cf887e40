"""What is checked of a file, and of this machine, before llama.cpp loads it."""

import platform
from typing import Literal

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.llama import library
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
#: Quantized values are only read fused.
_PLAIN_TYPES = ("f32", "f16", "bf16")
#: Memory that the scores of a step may take, in bytes.
_MOST_SCORES = 128 * MIB


def check_file(
    path: OpenedFile, header: GgufHeader, settings: EngineSettings, *, embeds: bool = False
) -> EngineSettings:
    """Refuse what the library would abort for; the settings with kernels that were proved."""
    check_layers(path, header)
    check_numbers(path, header)
    check_graph(path, header, settings.kv_type)
    settings = library.choose_buffers(header, settings)
    check_vocabulary(path, header, embeds=embeds)
    return settings


def check_memory(
    path: OpenedFile, header: GgufHeader, settings: EngineSettings, n_ctx: int
) -> EngineSettings:
    """Refuse a model that does not fit; the settings with attention and shelves chosen."""
    free: int | None = None
    if settings.check_memory:
        planned = settings.need_bytes or estimate_bytes(path, header, n_ctx, settings)
        need = max(planned, least_bytes(path, header, n_ctx, settings))
        available = available_bytes()
        check_fits(need, available, path.name)
        free = available - need
    if settings.n_marks and state_bytes(header):
        settings = settings.replace(n_shelves=max(settings.n_shelves, settings.n_marks))
    if state_bytes(header):  # a recurrent state cannot be cut back to repeat a step
        settings = settings.replace(n_slots=1)
    if n_more := settings.n_slots - 1 + settings.n_shelves:
        each = max(1, shelf_bytes(path, header, settings))
        room = SHELF_BYTES if free is None else min(SHELF_BYTES, free)
        n_more = min(n_more, max(0, room) // each)
        n_slots = min(settings.n_slots, 1 + n_more)
        settings = settings.replace(n_slots=n_slots, n_shelves=n_more + 1 - n_slots)
    if settings.flash_attn == "quicker":
        chosen = quicker_attention(settings, n_ctx, most_heads(path, header), free)
        settings = settings.replace(flash_attn=chosen)
    return settings


def quicker_attention(
    settings: EngineSettings,
    n_ctx: int,
    n_heads: int,
    free_bytes: int | None,
    *,
    machine: str | None = None,
) -> Literal["auto", "off"]:
    """Fused attention (flash attention) or not: `off` where unfused is quicker and there is memory
    for it, else `auto`, the library's choice.

    Fused, a step of few tokens goes through its scores one by one, which without native
    half-precision arithmetic is slow (figures in docs/deadline.md). On Arm and on GPUs the library
    decides. `n_heads` of the layer with most; `free_bytes` is what is left beside the model (None:
    not to be looked at); `machine` as `platform.machine()` says it.
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64"):
        return "auto"
    # Single precision, one for each token of a step, place of the context and head.
    scores = 4 * min(settings.n_ubatch, n_ctx) * n_ctx * n_heads
    most = _MOST_SCORES if free_bytes is None else min(_MOST_SCORES, free_bytes)
    return "off" if settings.kv_type in _PLAIN_TYPES and scores <= most else "auto"
