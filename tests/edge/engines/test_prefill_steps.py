"""How prefill is cut so that a stop is honoured in time, and what does not fit in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.engines.abort import ChunkSizer, StopWatcher
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.llama.estimate import estimate_bytes
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.files.gguf import read_header
from tests.edge.engines import tiny_gguf


def test_without_a_stop_steps_are_as_large_as_they_can_be() -> None:
    assert ChunkSizer(512, 48).next_size(interruptible=False) == 512


def test_steps_follow_the_speed() -> None:
    chunks = ChunkSizer(512, n_nodes=48)
    first = chunks.next_size(interruptible=True)
    assert first <= 8
    chunks.measured(first, first * 0.2)  # five tokens a second: a Pi Zero
    assert chunks.next_size(interruptible=True) == 4  # 48 x 20 ms / 0.2 s = 4.8, power of two below
    chunks.measured(4, 4 * 0.001)
    assert chunks.next_size(interruptible=True) == 512
    chunks.measured(512, 512 * 0.005)
    assert chunks.next_size(interruptible=True) == 192  # 192: whole tiles of 64
    chunks.measured(192, 192 * 0.01)
    assert chunks.next_size(interruptible=True) == 64


def test_steps_that_threads_share_are_short() -> None:
    chunks = ChunkSizer(512, n_nodes=48, shared=True)
    chunks.measured(64, 64 * 0.0025)
    assert chunks.next_size(interruptible=True) == 64  # a quarter of a second, whole tiles
    chunks.measured(64, 64 * 0.001)
    assert chunks.next_size(interruptible=True) == 192
    chunks.measured(192, 192 * 0.01)
    assert chunks.next_size(interruptible=True) == 64  # a whole tile, however long it takes
    chunks.measured(64, 64 * 0.04)
    assert chunks.next_size(interruptible=True) == 16  # but no longer than a stop may take
    assert chunks.next_size(interruptible=False) == 512


def test_smaller_tiles_follow_the_time_more_closely() -> None:
    chunks = ChunkSizer(512, n_nodes=48, shared=True, tile=32)
    chunks.measured(64, 64 * 0.0025)
    assert chunks.next_size(interruptible=True) == 96
    chunks.measured(96, 96 * 0.02)
    assert chunks.next_size(interruptible=True) == 32


def test_a_step_never_gets_less_than_one_token() -> None:
    chunks = ChunkSizer(512, n_nodes=1)
    chunks.measured(8, 80.0)
    assert chunks.next_size(interruptible=True) == 1


def test_fixed_steps() -> None:
    chunks = ChunkSizer(512, 48, fixed=100)
    chunks.measured(100, 1.0)
    assert chunks.next_size(interruptible=True) == chunks.next_size(interruptible=False) == 100


def test_watcher_reports_once_and_ends() -> None:
    import threading

    stopped = threading.Event()
    with StopWatcher(lambda: True, stopped.set) as watcher:
        assert stopped.wait(1)
    assert watcher.active and watcher.stopped()
    with StopWatcher(None, stopped.set) as idle:
        assert not idle.active and not idle.stopped()


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unlimited", ["max\n", None])
def test_no_limit_group(tmp_path: Path, unlimited: str | None) -> None:
    group(tmp_path, "0::/a", {"sys/fs/cgroup/a/memory.max": unlimited})
    assert available_bytes(tmp_path) > 0


def test_cgroup_v2_limit_of_an_ancestor(tmp_path: Path) -> None:
    base = "sys/fs/cgroup"
    group(
        tmp_path,
        "0::/a/b",
        {
            f"{base}/a/memory.max": "3000000",
            f"{base}/a/memory.current": "1000000",
            f"{base}/a/memory.stat": "anon 900000\ninactive_file 50000\n",
            f"{base}/a/b/memory.max": "max",
        },
    )
    assert available_bytes(tmp_path) == 2_050_000


def test_cgroup_v1_limit(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory/x"
    group(
        tmp_path,
        "9:cpu:/x\n4:memory:/x",
        {
            f"{base}/memory.limit_in_bytes": "500000",
            f"{base}/memory.usage_in_bytes": "600000",
            f"{base}/memory.stat": "total_inactive_file 20000\n",
        },
    )
    assert available_bytes(tmp_path) == 0


MOUNTS = (
    "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    "31 1 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def group(root: Path, membership: str, files: dict[str, str | None]) -> None:
    system = {"proc/self/cgroup": membership, "proc/self/mountinfo": MOUNTS}
    for name, content in {**system, **files}.items():
        if content is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)


def test_shortfall_is_stated() -> None:
    check_fits(10, 10, "model")
    with pytest.raises(DoesNotFitError, match=r"2\.00 KiB.*1\.00 KiB.*1\.00 KiB short") as caught:
        check_fits(2048, 1024, "model")
    assert caught.value.shortfall_bytes == 1024 and caught.value.next_step


def test_estimate_counts_weights_and_cache(tmp_path: Path) -> None:
    path = tiny_gguf.random_llama(tmp_path / "m.gguf", n_ctx=4096)
    header = read_header(path)
    small = estimate_bytes(path, header, 1024, EngineSettings())
    large = estimate_bytes(path, header, 2048, EngineSettings())
    # 2 layers x 2 KV heads x (32 + 32) values x 2 bytes
    assert large - small == 1024 * 2 * 2 * 64 * 2
    assert small > header.tensor_bytes
    quantized = EngineSettings(kv_type="q8_0")
    assert estimate_bytes(path, header, 2048, quantized) < large
