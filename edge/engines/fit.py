"""Check that memory suffices for a model, before anything is loaded.

The prediction is the plan's where there is one. Without a plan, a plain estimate from the header:
weights as they lie in the file, KV cache, compute buffers, and the engine with its interpreter.
"""

from __future__ import annotations

import struct
from pathlib import Path

import psutil

from boardfit.edge.disk.opened_file import Source
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.files.gguf import GgufArray, GgufHeader
from boardfit.edge.files.kind import open_regular
from boardfit.edge.units import MIB, format_bytes

#: Interpreter, library and its tables; measured at 25 to 35 MiB.
_PROCESS_BYTES = 40 * MIB
# Bytes per value: block size / values per block (ggml-common.h).
_KV_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


def available_bytes(root: Path = Path("/")) -> int:
    """Memory this process may still take: what the kernel calls available (droppable page cache
    included), or what is left under the nearest control-group limit if that is less.
    """
    available = int(psutil.virtual_memory().available)
    left = _cgroup_left(root)
    return available if left is None else min(available, left)


def _cgroup_left(root: Path) -> int | None:
    """Bytes left under this process's memory limit (cgroup v2, then v1); None without a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            base, limit_name, used_name = "sys/fs/cgroup", "memory.max", "memory.current"
            cache_key = "inactive_file"
        elif "memory" in controllers.split(","):
            base = "sys/fs/cgroup/memory"
            limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache_key = "total_inactive_file"
        else:
            continue
        # Every ancestor's limit holds too; inside a container the path may lead nowhere, and the
        # mount itself is then the group.
        path = root / base / group.lstrip("/")
        top = root / base
        while True:
            value = _group_left(path, limit_name, used_name, cache_key)
            if value is not None:
                left.append(value)
            if path == top or top not in path.parents:
                break
            path = path.parent
    return min(left, default=None)


def _group_left(path: Path, limit_name: str, used_name: str, cache_key: str) -> int | None:
    try:
        limit = int((path / limit_name).read_text())
        used = int((path / used_name).read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    cache = 0
    try:
        for line in (path / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == cache_key:
                cache = int(value)
    except (OSError, ValueError):
        pass
    return max(0, limit - used + cache)


def estimate_bytes(path: Source, header: GgufHeader, n_ctx: int, settings: EngineSettings) -> int:
    """Memory that the model will take, from its header alone: an estimate, within about 10 % for
    dense models. Sliding windows are counted as full.
    """
    arch = header.arch
    n_layer = header.integer(f"{arch}.block_count") or 0
    n_embd = header.integer(f"{arch}.embedding_length") or 0
    heads = _per_layer(path, header, f"{arch}.attention.head_count", n_layer) or [1] * n_layer
    heads_kv = _per_layer(path, header, f"{arch}.attention.head_count_kv", n_layer) or heads
    head_dim = n_embd // max([*heads, 1])
    head_k = header.integer(f"{arch}.attention.key_length") or head_dim
    head_v = header.integer(f"{arch}.attention.value_length") or head_dim
    kv = n_ctx * sum(heads_kv) * (head_k + head_v) * _KV_BYTES[settings.kv_type]
    feed_forward = _per_layer(path, header, f"{arch}.feed_forward_length", n_layer)
    n_ff = max(feed_forward, default=4 * n_embd)
    # Live at once in the widest part of the graph: gate, up and their product, and the residual.
    compute = settings.n_ubatch * (3 * n_ff + 4 * n_embd) * 4
    return header.tensor_bytes + int(kv) + compute + _PROCESS_BYTES


def most_heads(path: Source, header: GgufHeader) -> int:
    """Attention heads of the layer with most; at least 1."""
    n_layer = header.integer(f"{header.arch}.block_count") or 0
    return max(_per_layer(path, header, f"{header.arch}.attention.head_count", n_layer), default=1)


def _per_layer(path: Source, header: GgufHeader, key: str, n_layer: int) -> list[int]:
    """A key that holds one number for all layers, or an array of 32-bit numbers, one per layer.
    Empty where it is absent or something else.
    """
    value = header.get(key)
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [value] * n_layer
    if isinstance(value, GgufArray) and value.item_type in ("u32", "i32") and len(value) == n_layer:
        file, _ = open_regular(path)
        with file:
            file.seek(value.offset)
            return list(struct.unpack(f"<{n_layer}I", file.read(value.nbytes)))
    return []


def check_fits(need_bytes: int, available: int, name: str) -> None:
    """Raise DoesNotFitError, with the figures, if `need_bytes` is more than `available`."""
    short = need_bytes - available
    if short <= 0:
        return
    raise DoesNotFitError(
        f"{name} needs about {format_bytes(need_bytes)} of memory and {format_bytes(available)} "
        f"are free now: {format_bytes(short)} short",
        shortfall_bytes=short,
        next_step="close other programs, take a smaller --ctx or a smaller recipe; "
        "use --no-memory-check to load it anyway",
    )
