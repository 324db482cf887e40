"""What is read of a board, and what is shown of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bench.heat import FIRMWARE, HeatReader
from boardfit.edge.probe.system import CapturedSystem
from boardfit.edge.process.live import Page
from boardfit.edge.watch.draw import (
    BARS_ASCII,
    WAITING,
    ProcessHistory,
    display_width,
    screen_lines,
    shorten,
    sparkline,
)
from boardfit.edge.watch.look import (
    Look,
    Machine,
    ProcessMemory,
    local_pages,
    read_look,
    read_machine,
    read_processes,
)

FIXTURES = Path(__file__).parents[1] / "probe/fixtures"
MIB = 2**20
PAGE = Page(
    71, 900, "chat", "qwen3-0.6b", "llama_cpp", "Q4_K - Medium", 4, 4096, "", "decode",
    n_requests=3, n_prompt=200, n_out=41, n_total=141, n_gaps=138, gaps_ns=138 * 50 * 10**6,
    ttft_ns=1_310_000_000, ttft_n_prompt=200,
)  # fmt: skip
STAT = f"71 (edge) S {' '.join(['0'] * 18)} 900 0"
STATUS = "VmRSS:\t 900 kB\nRssAnon:\t 600 kB\nRssFile:\t 300 kB\nVmSwap:\t 0 kB\n"


def board(**files: str) -> CapturedSystem:
    """A Raspberry Pi 5: device tree and PMIC as captured, with these files beside."""
    base = {
        "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "/proc/meminfo": "MemTotal: 8256944 kB\nMemAvailable: 7000000 kB\n"
        "SwapTotal: 204784 kB\nSwapFree: 204784 kB\n",
        "/proc/loadavg": "3.91 2.00 1.00 2/300 1234\n",
        "/proc/pressure/memory": "some avg10=1.25 avg60=0.10 avg300=0.00 total=12\n",
        "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "/sys/class/thermal/thermal_zone0/temp": "66200\n",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
        FIRMWARE: "80008\n",
    }
    pmic = (FIXTURES / "pmic-raspberry-pi-5.txt").read_text()
    return CapturedSystem({**base, **files}, {"pmic": pmic})


def test_a_pi_5_is_read_whole() -> None:
    system = board()
    machine = read_machine(system, HeatReader(system))
    assert machine.name == "Raspberry Pi 5 Model B Rev 1.0"
    assert (machine.temp_c, machine.clock_hz, machine.throttled) == (66.2, 2.4e9, 0x80008)
    assert machine.power_kind == "pmic" and machine.power_w and 5 < machine.power_w < 20
    assert machine.available_bytes == 7_000_000 * 1024 and machine.swap_used_bytes == 0
    assert (machine.load_1min, machine.pressure) == (3.91, 1.25)


def test_a_board_without_sensors_has_none_and_no_zeros() -> None:
    system = CapturedSystem({"/proc/meminfo": "MemTotal: 1000 kB\n"})
    machine = read_machine(system, HeatReader(system))
    assert machine == Machine(ram_bytes=1_024_000)
    lines = [line.text for line in screen_lines(Look(machine, ()), {}, width=80, height=24)]
    assert "no sensor    temperature, clock, power, throttling" in lines and WAITING in lines


def test_throttle_bits_of_the_program_where_there_is_no_file() -> None:
    text = (FIXTURES / "vcgencmd-raspberry-pi-3.txt").read_text()
    throttled = next(line for line in text.splitlines() if "throttled" in line)
    system = CapturedSystem({}, {"throttled": throttled, "temp": "temp=38.6'C"})
    sample = HeatReader(system).read()
    assert (sample.throttled, sample.temp_c) == (0x50005, 38.6)
    lines = screen_lines(Look(Machine(throttled=0x50005), ()), {}, width=120, height=24)
    (line,) = [line for line in lines if line.text.startswith("throttling")]
    assert "under-voltage now" in line.text and line.tone == "bad"


def test_bits_of_the_past_are_told_without_alarm() -> None:
    lines = screen_lines(Look(Machine(throttled=0x50000), ()), {}, width=120, height=24)
    (line,) = [line for line in lines if line.text.startswith("throttling")]
    assert "has occurred" in line.text and line.tone == "plain"


def test_a_page_counts_only_with_its_own_process() -> None:
    text = PAGE.to_bytes().decode()
    alive = {"/proc/71/stat": STAT, "/proc/71/status": STATUS}
    ((page, memory),) = read_processes(CapturedSystem(alive), [text, text])
    assert page == PAGE and memory.anon_bytes == 600 * 1024 and memory.pss_bytes is None
    other = {**alive, "/proc/71/stat": STAT.replace(" 900 ", " 901 ")}
    assert read_processes(CapturedSystem(other), [text]) == ()
    assert read_processes(CapturedSystem({}), [text]) == ()


def test_links_pipes_and_noise_in_the_folder_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "boardfit"
    folder.mkdir(mode=0o700)
    (folder / "secret").write_bytes(PAGE.to_bytes())
    (folder / "1.json").symlink_to(folder / "secret")
    os.mkfifo(folder / "2.json")  # opening it would wait for ever
    (folder / "3.json").mkdir()
    (folder / "4.json").write_bytes(b"\xff\xfe" * 9000)
    assert not [text for text in local_pages() if "qwen3-0.6b" in text]


def test_a_round_of_a_far_board_reads_like_a_near_one() -> None:
    near = board(**{
        "/run/user/1000/boardfit/71.json": PAGE.to_bytes().decode(),
        "/proc/71/stat": STAT, "/proc/71/status": STATUS,
    })  # fmt: skip
    look = read_look(near)
    assert look.processes[0][0] == PAGE and look.machine.throttled == 0x80008


def test_the_screen_says_it_all() -> None:
    system = board()
    look = Look(
        read_machine(system, HeatReader(system)),
        ((PAGE, ProcessMemory(900 * MIB, 512 * MIB, 380 * MIB, 840 * MIB, 0)),),
    )
    lines = screen_lines(
        look, {71: ProcessHistory(18.4, (9.0, 18.4))}, width=100, height=30, keys="q"
    )
    text = "\n".join(line.text for line in lines)
    for part in (
        "Raspberry Pi 5 Model B Rev 1.0", "66.2 °C", "2.40 GHz", "W (pmic)",
        "soft temperature limit now", "chat  qwen3-0.6b (Q4_K - Medium), llama_cpp, 4 threads",
        "writes, 41 tokens so far", "18.4 tokens/s", "▄█", "1.31 s after 200 tokens of prompt",
        "anonymous 512.0 MiB  mapped 380.0 MiB  PSS 840.0 MiB  swap 0 B", "pressure 1.2 %",
    ):  # fmt: skip
        assert part in text, part


def test_a_slow_prefill_and_a_silent_decode_show_for_how_long() -> None:
    def now(page: Page, still_s: float) -> str:
        look = Look(Machine(), ((page, ProcessMemory()),))
        lines = screen_lines(look, {71: ProcessHistory(None, (), still_s)}, width=90, height=30)
        return next(line.text for line in lines if line.text.startswith("  now"))

    assert "reads 200 tokens, 12.0 s so far" in now(replace(PAGE, state="prefill"), 12)
    assert "none for 5.00 s" in now(PAGE, 5)
    assert "waits; 141 tokens so far, in requests: 3" in now(replace(PAGE, state="idle"), 99)


def test_what_a_model_is_called_cannot_steer_the_terminal() -> None:
    hostile = replace(PAGE, model="x\x1b[2J\x1b]0;owned\x07\u202e", label="\x9b31m")
    lines = screen_lines(Look(Machine(), ((hostile, ProcessMemory()),)), {}, width=200, height=30)
    text = "".join(line.text for line in lines)
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text) and "\\x1b[2J" in text


@given(
    st.integers(1, 200), st.integers(1, 50), st.integers(0, 5), st.text(max_size=80), st.booleans()
)
def test_it_fits_in_every_window(
    width: int, height: int, n: int, name: str, ascii_only: bool
) -> None:
    pages = tuple(
        (replace(PAGE, pid=i, model=name, label=name), ProcessMemory(1)) for i in range(n)
    )
    histories = {i: ProcessHistory(1.0, (1.0,) * 50) for i in range(n)}
    lines = screen_lines(
        Look(Machine(name=name), pages), histories,
        width=width, height=height, keys="q leaves", ascii_only=ascii_only,
    )  # fmt: skip
    assert 1 <= len(lines) <= height
    assert all(display_width(line.text) <= width for line in lines)


def test_processes_that_do_not_fit_are_counted() -> None:
    pages = tuple((replace(PAGE, pid=i), ProcessMemory()) for i in range(5))
    lines = screen_lines(Look(Machine(), pages), {}, width=80, height=16)
    assert lines[-1].text == "and 4 more; a taller window shows them"


def test_rates_are_exact_whenever_one_looks() -> None:
    past = ProcessHistory()

    def add(n_gaps: int, gaps_ns: int, now_s: float) -> float | None:
        past.add(replace(PAGE, n_gaps=n_gaps, gaps_ns=gaps_ns), now_s)
        return past.rate

    assert add(100, 5 * 10**9, 0.0) is None
    # 10 tokens in 0.5 s of decoding, and a long prefill before them that must not count
    assert add(110, 5_500_000_000, 1.7) == pytest.approx(20)
    assert add(115, 6_500_000_000, 2.7) == pytest.approx(10)
    assert add(115, 6_500_000_000, 9.0) is None
    assert list(past.history) == [pytest.approx(20), pytest.approx(10)]
    assert past.still_s == pytest.approx(9.0)


def test_sparklines() -> None:
    assert sparkline((0.0, 5.0, 10.0)) == "▁▅█" and sparkline((3.0,)) == ""
    assert set(sparkline((1.0, 9.0), BARS_ASCII)) <= set(BARS_ASCII)
    assert shorten("日本語モデル", 5) == "日本…"


def test_records_are_json() -> None:
    from boardfit.edge.watch.look import to_record

    record = to_record(Look(Machine(throttled=4), ((PAGE, ProcessMemory(1)),)), {71: 18.4})
    again = json.loads(json.dumps(record))
    assert again["processes"][0]["decode_tps"] == 18.4
    assert again["machine"]["throttled_means"] == ["throttled now"]
