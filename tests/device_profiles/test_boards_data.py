"""The shipped board files as data: complete, sourced, and possible."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import boardfit.device_profiles.catalog as catalog
from boardfit.device_profiles.catalog import THIS_MACHINE, all_profiles, find_profile, load_profiles
from boardfit.device_profiles.engine_rules import ENGINES, engine_verdicts
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.toml import parse_sources, parse_toml
from boardfit.edge.probe.devices_command import devices

BOARDS = Path(catalog.__file__).parent / "boards"
SOCS = BOARDS.parent / "socs"
FILES = sorted([*BOARDS.glob("*.toml"), *SOCS.glob("*.toml")])

# Every board that was asked for, by the name that a user types: id or alias → GB of RAM.
ASKED: dict[str, float] = {
    "raspberry-pi-zero-2-w": 0.5,
    "raspberry-pi-3b-plus": 1,
    **{f"raspberry-pi-4b-{n}gb": n for n in (1, 2, 4, 8)},
    "raspberry-pi-400": 4,
    **{f"raspberry-pi-cm4-{n}gb": n for n in (1, 2, 4, 8)},
    **{f"raspberry-pi-5-{n}gb": n for n in (1, 2, 4, 8, 16)},
    "raspberry-pi-500": 8,
    "raspberry-pi-500-plus": 16,
    **{f"raspberry-pi-cm5-{n}gb": n for n in (2, 4, 8, 16)},
    **{f"{board}-{n}gb": n for board in ("orange-pi-5", "rock-5b") for n in (4, 8, 16, 32)},
    **{f"rock-4d-{n}gb": n for n in (2, 4, 8, 16)},
    **{f"orange-pi-3b-{n}gb": n for n in (2, 4, 8)},
    **{f"quartz64-a-{n}gb": n for n in (4, 8)},
    **{f"radxa-zero-3w-{n}gb": n for n in (1, 2, 4, 8)},
    "jetson-nano-4gb": 4,
    "jetson-tx2-8gb": 8,
    **{f"jetson-xavier-nx-{n}gb": n for n in (8, 16)},
    "jetson-agx-xavier-32gb": 32,
    **{f"jetson-orin-nano-{n}gb": n for n in (4, 8)},
    "jetson-orin-nano-super-8gb": 8,
    **{f"jetson-orin-nx-{n}gb": n for n in (8, 16)},
    **{f"jetson-agx-orin-{n}gb": n for n in (32, 64)},
    "jetson-agx-thor-128gb": 128,
    "jetson-t5000": 128,
    "jetson-t4000-64gb": 64,
    **{f"orange-pi-6-plus-{n}gb": n for n in (16, 32, 64)},
    **{"dragonwing-iq-9075": 36, "dragonwing-iq-8275": 12},
    **{f"rv1126b-{n}gb": n for n in (2, 4)},
    **{"pixel-6a": 6, "pixel-8": 8, "pixel-8a": 8, "pixel-9": 12},
    **{f"galaxy-s{n}": ram for n, ram in ((22, 8), (23, 8), (24, 8), (25, 12), (26, 12))},
    **{f"galaxy-s{n}-ultra": 12 for n in (24, 25, 26)},
    **{f"oneplus-{n}-{ram}gb": ram for n in (12, 13) for ram in (12, 16)},
    **{f"snapdragon-8-gen-{n}-reference": ram for n, ram in ((1, 8), (2, 8), (3, 12))},
    **{f"snapdragon-8-elite{gen}-reference": 12 for gen in ("", "-gen-5")},
    "dimensity-9000-plus-reference": 8,
    **{f"dimensity-{n}-reference": 12 for n in (9300, 9400)},
    **{f"phone-{n}gb": n for n in (4, 6, 8, 12, 16)},
    **{f"{soc}-{n}gb": n for soc in ("n100", "n150") for n in (8, 16)},
}

# Core → flags that it has, flags that it cannot have. Sources: Arm's technical reference manuals
# (Armv8.0: A53, A57, A72; Armv8.2 with dot product: A55, A76, A78, A78AE, X1; Armv9: the rest) and
# the /proc/cpuinfo captures of hrw/arm-socs-table for NVIDIA's and Qualcomm's own cores.
V80 = ({"neon"}, {"fp16", "dotprod", "i8mm", "bf16", "sve", "lse"})
V82 = ({"neon", "fp16", "dotprod", "lse"}, {"i8mm", "bf16", "sve", "sve2"})
V9 = ({"neon", "fp16", "dotprod", "i8mm", "lse"}, set[str]())
CORES: dict[str, tuple[set[str], set[str]]] = {
    **dict.fromkeys(("cortex-a53", "cortex-a57", "cortex-a72", "denver-2"), V80),
    "carmel": ({"neon", "fp16", "lse"}, {"dotprod", "i8mm", "bf16", "sve"}),
    **dict.fromkeys(("cortex-a55", "cortex-a76", "cortex-a78", "cortex-a78ae", "cortex-x1"), V82),
    **dict.fromkeys(
        ("cortex-a510", "cortex-a520", "cortex-a710", "cortex-a715", "cortex-a720"), V9
    ),
    **dict.fromkeys(("cortex-x2", "cortex-x3", "cortex-x4", "cortex-x925", "neoverse-v3ae"), V9),
    "oryon": ({*V9[0], "bf16"}, {"sve", "sve2", "sme"}),
    "oryon-gen-3": ({*V9[0], "bf16", "sve2", "sme"}, set()),
    "gracemont": ({"sse42", "avx", "avx2", "fma", "f16c", "avx_vnni"}, {"avx512"}),
}

BUS = re.compile(r"(?:(\d+) x )?(\d+) bit of (?:LP)?DDR\w+ at (\d+) MT/s")

IDS = sorted(path.stem for path in BOARDS.glob("*.toml"))
every_board = pytest.mark.parametrize("board", IDS)


def profile_of(board: str) -> DeviceProfile:
    return all_profiles()[board]


def facts(data: dict[str, Any]) -> set[str]:
    """Dotted keys that need a source. An engine's entry names its own; a name is no fact."""
    keys: set[str] = set()
    for table, content in data.items():
        if table == "engines" or not isinstance(content, dict | list) or table == "aliases":
            continue
        parts = (
            [(f"{table}.{i}", entry) for i, entry in enumerate(content)]
            if isinstance(content, list)
            else [(table, content)]
        )
        keys |= {f"{name}.{key}" for name, part in parts for key in part}
    return keys - {"memory.sustained_is_measured"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_fact_names_its_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    data = parse_toml(text, path.name)
    sources = parse_sources(text)
    assert facts(data) <= set(sources), sorted(facts(data) - set(sources))
    assert all(len(source) > 8 for source in sources.values())
    for engine in data.get("engines", []):
        assert engine["source"].strip() and engine["engine"].isidentifier()


def test_names_are_unique_and_found() -> None:
    profiles = load_profiles(BOARDS)  # raises on a name used twice
    for profile in profiles.values():
        for name in (profile.id, *profile.aliases):
            assert name == name.strip().lower().replace(" ", "-").replace("_", "-"), name
            assert find_profile(name).id == profile.id
            assert name != THIS_MACHINE


@pytest.mark.parametrize("name", sorted(ASKED))
def test_every_board_asked_for_is_there(name: str) -> None:
    assert find_profile(name).ram_bytes == ASKED[name] * 2**30


def test_every_base_file_is_extended() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in BOARDS.glob("*.toml")}
    used = {parse_toml(text, name).get("extends") for name, text in texts.items()}
    assert {path.stem for path in SOCS.glob("*.toml")} == used - {None}


@every_board
def test_ram_is_what_the_name_says(board: str) -> None:
    profile = profile_of(board)
    gib = profile.ram_bytes / 2**30
    if match := re.search(r"-(\d+)gb$", board):
        assert gib == int(match[1])
        assert f"{match[1]} GB" in profile.name
    assert gib in {0.5, 1, 2, 4, 6, 8, 12, 16, 32, 36, 64, 128}


@every_board
def test_reserve_is_possible(board: str) -> None:
    memory = profile_of(board).memory
    # Linux keeps 64 bytes for each page, of 4 KiB on most boards and of 16 KiB on a Pi 5.
    page = 16384 if profile_of(board).soc == "BCM2712" else 4096
    assert memory.reserved_bytes > max(150 * 2**20, memory.ram_bytes * 64 / page)
    assert memory.reserved_bytes < 0.5 * memory.ram_bytes


@every_board
def test_theoretical_bandwidth_is_bus_times_rate(board: str) -> None:
    profile = profile_of(board)
    theoretical = profile.memory.bandwidth_theoretical
    if theoretical is None:
        return
    source = profile.sources["memory.theoretical_gb_per_s"]
    assert 2e9 < theoretical < 300e9
    if match := BUS.search(source):
        channels, bits, rate = int(match[1] or 1), int(match[2]), int(match[3])
        assert theoretical == pytest.approx(channels * bits / 8 * rate * 1e6, rel=0.01), source


def test_bus_and_rate_are_given_for_most_boards() -> None:
    stated = [
        p.id
        for p in all_profiles().values()
        if BUS.search(p.sources.get("memory.theoretical_gb_per_s", ""))
    ]
    assert len(stated) > 0.7 * len(all_profiles())


@every_board
def test_sustained_bandwidth_is_possible(board: str) -> None:
    memory = profile_of(board).memory
    if memory.bandwidth_sustained is None:
        return
    assert memory.bandwidth_sustained >= 1e9
    if memory.bandwidth_theoretical is not None:
        share = memory.bandwidth_sustained / memory.bandwidth_theoretical
        assert 0.2 <= share <= 0.95, share


@every_board
def test_a_bandwidth_called_measured_is_no_estimate(board: str) -> None:
    profile = profile_of(board)
    if profile.basis != "measured on this SoC":
        return
    assert profile.memory.bandwidth_sustained is not None
    assert "estimate" not in profile.sources["memory.sustained_gb_per_s"]


@every_board
def test_cores_have_the_instructions_they_have(board: str) -> None:
    for cluster in profile_of(board).clusters:
        needed, impossible = CORES[cluster.core]
        assert needed <= cluster.isa, needed - cluster.isa
        assert not impossible & cluster.isa, impossible & cluster.isa
        assert cluster.clock_hz is not None and 0.9e9 <= cluster.clock_hz <= 5e9


@every_board
def test_litert_lm_is_never_promised_without_lse(board: str) -> None:
    profile = profile_of(board)
    support = profile.engine_support("litert_lm")
    if "neon" in profile.isa and "lse" not in profile.isa:
        assert support is None or not support.runs
    elif support is not None and not support.runs:
        assert "LSE" not in support.note


@pytest.mark.parametrize(
    "board",
    ["raspberry-pi-3b-plus", "raspberry-pi-cm4-4gb", "rock-4d-8gb", "jetson-nano", "tx2"],
)
def test_litert_lm_is_refused_on_armv8_0(board: str) -> None:
    support = find_profile(board).engine_support("litert_lm")
    assert support is not None and not support.runs
    assert "LiteRT-LM#1847" in support.source


@every_board
def test_every_engine_gets_the_verdict_that_its_builds_allow(board: str) -> None:
    profile = profile_of(board)
    verdicts = {entry.engine: entry for entry in engine_verdicts(profile)}
    assert len(verdicts) == len(engine_verdicts(profile)), "one verdict for each engine"
    is_arm, python = "neon" in profile.isa, profile.software.python
    if is_arm and "lse" not in profile.isa:
        assert not verdicts["litert_lm"].runs, "litert-lm aborts on Armv8.0 cores"
    if python is not None and (profile.software.libc or "").startswith("glibc"):
        assert set(ENGINES) <= set(verdicts)
        minor = int(python.split(".")[1])
        tried = profile.engine_support("onnxruntime_genai")
        assert verdicts["onnxruntime_genai"].runs == (tried.runs if tried else minor >= 11)
        assert not (tried and tried.runs and minor < 11), "onnxruntime-genai has no such wheel"
    out = CliRunner().invoke(devices, ["show", board]).output
    for engine, entry in verdicts.items():
        line = next(line for line in out.splitlines() if line.split()[:1] == [engine])
        assert ("does not run" in line) != entry.runs and entry.source in line


@pytest.mark.parametrize(
    ("board", "engine", "runs", "word"),
    [
        ("raspberry-pi-4b-4gb", "litert_lm", False, "1847"),
        ("raspberry-pi-5-8gb", "litert_lm", True, "potato-os"),
        ("orange-pi-5-8gb", "onnxruntime_genai", True, "rule"),
        ("jetson-orin-nano-8gb", "onnxruntime_genai", False, "cp311"),
        ("jetson-agx-xavier-32gb", "litert", False, "Python 3.10"),
        ("n100-8gb", "litert_lm", True, "rule"),
    ],
)
def test_verdicts_say_what_they_rest_on(board: str, engine: str, runs: bool, word: str) -> None:
    [found] = [e for e in engine_verdicts(find_profile(board)) if e.engine == engine]
    assert found.runs == runs and word in f"{found.note} {found.source}"


@pytest.mark.parametrize(
    ("board", "flags"),
    [
        # The RK3576 pairs Armv8.0 clusters, the RK3588 Armv8.2 ones.
        ("rock-4d-8gb", {"neon"}),
        ("rock-5b-8gb", {"neon", "fp16", "dotprod", "lse"}),
        ("jetson-xavier-nx-8gb", {"neon", "fp16", "lse"}),
        # Captures: no bf16 on the Tensor G3, no SVE2 on the Snapdragon 8 Gen 1.
        ("pixel-8", {"neon", "fp16", "dotprod", "i8mm", "sve", "sve2", "lse"}),
        ("galaxy-s22", {"neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "lse"}),
        ("galaxy-s25", {"neon", "fp16", "dotprod", "i8mm", "bf16", "lse"}),
    ],
)
def test_what_all_cores_of_a_board_share(board: str, flags: set[str]) -> None:
    assert find_profile(board).isa == flags


def test_a_figure_nobody_published_is_none_and_shown_as_such() -> None:
    profile = find_profile("pixel-9")
    assert profile.memory.bandwidth_sustained is None
    assert profile.basis == "from specifications"
    result = CliRunner().invoke(devices, ["show", "pixel-9"])
    assert result.exit_code == 0, result.output
    assert " 0.0 GB/s" not in result.output and "not known" in result.output


def test_devices_lists_every_board_asked_for() -> None:
    out = CliRunner().invoke(devices, []).output
    listed = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert {find_profile(name).id for name in ASKED} <= listed
