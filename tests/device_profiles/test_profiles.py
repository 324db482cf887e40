"""Board files: every fact sourced, every slip refused with the key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

import boardfit.device_profiles.catalog as catalog
from boardfit.device_profiles.catalog import all_profiles, find_profile, load_profile, load_profiles
from boardfit.device_profiles.profile import ProfileError
from boardfit.device_profiles.toml import parse_sources

BOARDS = Path(catalog.__file__).parent / "boards"

BOARD = """
id = "my-board"
name = "My board"

[memory]
# Source: its data sheet
ram_mib = 4096
reserved_mib = 300
theoretical_gb_per_s = 12.8

[[cpu]]
core = "cortex-a76"
count = 4
clock_mhz = 2400
isa = ["neon", "dotprod"]
"""


def write(folder: Path, text: str, name: str = "my-board") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_issue_boards_are_there() -> None:
    wanted = {"raspberry-pi-zero-2-w", "jetson-orin-nano-8gb"}
    wanted |= {f"raspberry-pi-4b-{n}gb" for n in (2, 4, 8)}
    wanted |= {f"raspberry-pi-5-{n}gb" for n in (4, 8, 16)} | {f"phone-{n}gb" for n in (6, 8, 12)}
    assert wanted <= set(all_profiles())


@pytest.mark.parametrize("board", sorted(p.stem for p in BOARDS.glob("*.toml")))
def test_every_fact_of_a_shipped_board_has_a_source(board: str) -> None:
    profile = load_profile(BOARDS / f"{board}.toml")
    texts = [(BOARDS / f"{board}.toml").read_text()]
    facts = {"memory.ram_mib", "memory.reserved_mib"}
    if profile.memory.bandwidth_sustained is not None:  # nobody has measured some boards
        facts.add("memory.sustained_gb_per_s")
    for i in range(len(profile.clusters)):
        facts |= {f"cpu.{i}.{key}" for key in ("core", "count", "clock_mhz", "isa")}
    for table in ("storage.read_mb_per_s", "heat.sustained_share", "power.idle_w", "power.load_w"):
        section, key = table.split(".")
        if f"[{section}]" in texts[0] and key in texts[0]:
            facts.add(table)
    assert facts <= set(profile.sources), facts - set(profile.sources)
    assert all(engine.source for engine in profile.engines)


def test_units_become_base_units(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, BOARD))
    assert profile.ram_bytes == 4096 * 2**20
    assert profile.free_ram_bytes == 3796 * 2**20
    assert profile.memory.bandwidth_theoretical == pytest.approx(12.8e9)
    assert profile.memory.bandwidth_sustained is None
    assert profile.clusters[0].clock_hz == pytest.approx(2.4e9)
    assert profile.n_cores == 4
    assert profile.sources["memory.ram_mib"] == "its data sheet"


def test_isa_is_what_all_cores_have(tmp_path: Path) -> None:
    little = '\n[[cpu]]\ncore = "cortex-a53"\ncount = 4\nisa = ["neon"]\n'
    assert load_profile(write(tmp_path, BOARD + little)).isa == {"neon"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ram_mib = 4096", "ram_gb = 4", "unknown key.*Did you mean 'ram_mib'"),
        ("ram_mib = 4096", "ram_mib = -4096", "ram_mib: expected a whole number from 16"),
        ("ram_mib = 4096", "ram_mib = 4096.5", "expected a whole number"),
        ("ram_mib = 4096", 'ram_mib = "4 GB"', "expected a whole number"),
        ("ram_mib = 4096", "ram_mib = true", "expected a whole number"),
        ("ram_mib = 4096", "ram_mib = 4294967296", "the unit is part of the key's name"),
        ("reserved_mib = 300", "reserved_mib = 4096", "reserved_mib must be less than ram_mib"),
        ("reserved_mib = 300", "", r"\[memory\] reserved_mib is missing"),
        ("theoretical_gb_per_s = 12.8", "sustained_gb_per_s = nan", "expected a number"),
        ("clock_mhz = 2400", "clock_ghz = 2.4", "unknown key.*Did you mean 'clock_mhz'"),
        ('"dotprod"', '"dot-prod"', "unknown ISA flag 'dot-prod'. Did you mean 'dotprod'"),
        ("[[cpu]]", "[cpu]", r"write \[\[cpu\]\] entries"),
        ("[memory]", "[memry]", "unknown key.*Did you mean 'memory'"),
        ('id = "my-board"', 'id = "My Board"', "lower-case words with hyphens"),
        ('id = "my-board"', 'id = "other"', "must be the file's name"),
        ('name = "My board"', "", "name is missing"),
        ('name = "My board"', "name = ", "not valid TOML"),
        ('name = "My board"', 'name = "x"\nextends = "bcm2713"', "Did you mean 'bcm2712'"),
    ],
)
def test_slips_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BOARD
    with pytest.raises(ProfileError, match=message):
        load_profile(write(tmp_path, BOARD.replace(old, new)))


def test_sustained_above_theoretical_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="more than theoretical"):
        load_profile(
            write(tmp_path, BOARD.replace("reserved", "sustained_gb_per_s = 99\nreserved"))
        )


@pytest.mark.parametrize("second_alias", ['["my-board"]', '["mine"]', '["this-machine"]'])
def test_a_name_used_twice_is_refused(tmp_path: Path, second_alias: str) -> None:
    write(tmp_path, 'aliases = ["mine"]\n' + BOARD)
    second = BOARD.replace("my-board", "second").replace("My board", "Second")
    write(tmp_path, f"aliases = {second_alias}\n" + second, "second")
    with pytest.raises(ProfileError, match="is used by"):
        load_profiles(tmp_path)


def test_extending_takes_the_base_and_its_sources(tmp_path: Path) -> None:
    socs = tmp_path / "socs"
    socs.mkdir()
    base = BOARD.split("[[cpu]]")[1]
    (socs / "chip.toml").write_text(f'soc = "Chip"\n[[cpu]]\n# Source: the chip\n{base.strip()}\n')
    own = BOARD.split("[[cpu]]")[0].replace("name =", 'extends = "chip"\nname =')
    profile = load_profile(write(tmp_path, own), socs)
    assert profile.soc == "Chip"
    assert profile.clusters[0].core == "cortex-a76"
    assert profile.sources["cpu.0.core"] == "the chip"
    assert profile.sources["memory.ram_mib"] == "its data sheet"


def test_a_base_may_not_name_itself_a_board(tmp_path: Path) -> None:
    (tmp_path / "chip.toml").write_text('name = "Chip"\n')
    with pytest.raises(ProfileError, match="must not set 'name'"):
        load_profile(write(tmp_path, 'extends = "chip"\n' + BOARD), tmp_path)


def test_sources_cover_a_group_and_stop_at_a_blank_line() -> None:
    text = "[memory]\n# Source: one\n# more of it\na = 1\nb = 2\n\nc = 3\n# Source: two\nd = 4\n"
    text += "[[cpu]]\n# Source: three\ne = 5\n[[cpu]]\ne = 6\n"
    assert parse_sources(text) == {
        "memory.a": "one more of it",
        "memory.b": "one more of it",
        "memory.d": "two",
        "cpu.0.e": "three",
    }


@pytest.mark.parametrize("name", ["raspberry-pi-5-8gb", "pi5", "PI5", " rpi5 ", "Raspberry Pi 5"])
def test_boards_are_found_by_id_and_alias(name: str) -> None:
    assert find_profile(name).id == "raspberry-pi-5-8gb"


@pytest.mark.parametrize("name", ["raspberry-pi-5-8g", "../../etc/passwd", "", "jetson pico"])
def test_an_unknown_board_is_refused(name: str) -> None:
    with pytest.raises(ProfileError, match="unknown device"):
        find_profile(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(ProfileError, match="Did you mean 'raspberry-pi-5-8gb'"):
        find_profile("raspbery-pi-5-8gb")
