"""The wheel compiled for the board: what is in it, what it asks for, that packing repeats."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.board.command import engine as command
from boardfit.converters.board.engine import source as engine_source
from boardfit.converters.board.engine.build import build_wheel
from boardfit.converters.board.engine.pack import (
    Symbols,
    add_kernel_loader,
    pack_wheel,
    read_symbols,
)
from boardfit.converters.board.engine.source import fetch_sdist, unpack_source
from boardfit.converters.board.engine.store import BuiltEngine, find_engines
from boardfit.converters.board.engine.toolchain import find_toolchain
from boardfit.converters.board.engine.variants import (
    can_compile,
    keep_buildable_variants,
    name_march,
)
from boardfit.edge.errors import (
    EngineError,
    EngineMissingError,
    InputError,
    IntegrityError,
    UsageError,
)

ROOT = Path(__file__).parents[4]

#: The newest symbol versions on systems that boards run: glibc's own number, and what the libstdc++
#: of the release's newest gcc exports (https://gcc.gnu.org/onlinedocs/libstdc++/manual/abi.html).
SYSTEMS: dict[str, dict[str, tuple[int, ...]]] = {
    "Debian 12": {"GLIBC": (2, 36), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)},
    "Debian 13": {"GLIBC": (2, 41), "GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15), "GCC": (14, 0, 0)},
    "Ubuntu 22.04": {
        "GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0),
    },
    "Ubuntu 24.04": {
        "GLIBC": (2, 39), "GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15), "GCC": (14, 0, 0),
    },
}  # fmt: skip


def missing_on(system: str, symbols: Symbols) -> list[str]:
    """What a system does not have, as `GLIBC_2.38` …; nothing if the libraries load there."""
    return [
        f"{family}_{'.'.join(map(str, version))}"
        for family, version in sorted(symbols.versions.items())
        if version > SYSTEMS[system].get(family, ())
    ]


# ---- without compiling the engine ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "march"),
    [
        ((), "armv8-a"),
        (("DOTPROD",), "armv8.2-a+dotprod"),
        (("DOTPROD", "FP16_VECTOR_ARITHMETIC", "SVE"), "armv8.2-a+dotprod+fp16+sve"),
        (("DOTPROD", "SVE", "MATMUL_INT8", "SME"), "armv9.2-a+dotprod+sve+i8mm+sme"),
    ],
)
def test_march(features: tuple[str, ...], march: str) -> None:
    assert name_march(features) == march


def test_an_unknown_feature_is_not_guessed() -> None:
    with pytest.raises(InputError, match="WARP"):
        name_march(("WARP",))


def test_an_unknown_variant() -> None:
    with pytest.raises(UsageError, match=r"armv8\.2-dotprod"):
        build_wheel("armv8.2-dotprodd")


def test_version_is_the_one_that_the_host_compiles() -> None:
    """scripts/build_engine runs before anything is installed and so holds the pins once more."""
    text = (ROOT / "scripts/build_engine").read_text()
    assert f'VERSION = "{engine_source.VERSION}"' in text
    assert f'SDIST_SHA256 = "{engine_source.SDIST_SHA256}"' in text
    assert f"llama-cpp-python=={engine_source.VERSION}" in (ROOT / "pyproject.toml").read_text()


def test_variants_that_the_compiler_cannot_build_are_left_out(
    cross_tools: None, tmp_path: Path
) -> None:
    lists = tmp_path / "CMakeLists.txt"
    text = (
        "if (x)\n"
        "    ggml_add_cpu_backend_variant(armv8.0_1)\n"
        "    ggml_add_cpu_backend_variant(armv8.2_1    DOTPROD)\n"
        "    ggml_add_cpu_backend_variant(armv9.2_1    DOTPROD SVE MATMUL_INT8 SME)\n"
        "    ggml_add_cpu_backend_variant(android_armv8.0_1)\n"
        "endif()\n"
    )
    lists.write_text(text)
    compiler = find_toolchain().tool("gcc")
    kept, dropped = keep_buildable_variants(lists, compiler)
    assert kept[:2] == ["armv8.0_1", "armv8.2_1"]
    newest = can_compile(compiler, "armv9.2-a+dotprod+sve+i8mm+sme")
    assert dropped == ([] if newest else ["armv9.2_1"])
    for name in kept:
        assert f"({name}" in lists.read_text()
    assert all(f"({name}" not in lists.read_text() for name in dropped)
    assert "android_armv8.0_1" in lists.read_text()  # not ours to judge


def test_a_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOARDFIT_CROSS", "riscv999-linux-gnu")
    with pytest.raises(EngineMissingError, match=r"riscv999-linux-gnu-g\+\+") as caught:
        find_toolchain()
    assert "apt-get install" in str(caught.value.next_step)


def compile_library(folder: Path, compiler: str, *flags: str) -> Path:
    (folder / "a.c").write_text("#include <math.h>\ndouble f(double x) { return pow(x, 2.5); }\n")
    library = folder / "liba.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", folder / "a.c", "-o", library, "-lm", *flags],
        check=True,
    )
    return library


def test_symbol_versions_make_the_tag(cross_tools: None, tmp_path: Path) -> None:
    toolchain = find_toolchain()
    library = compile_library(tmp_path, toolchain.tool("gcc"))
    symbols = read_symbols(toolchain.tool("readelf"), [library])
    assert symbols.glibc == (2, 29)  # pow of libm was renewed then
    assert symbols.platform_tag == "manylinux_2_29_aarch64"
    assert not any(missing_on(system, symbols) for system in SYSTEMS)


def test_a_library_of_this_machine_is_refused(cross_tools: None) -> None:
    toolchain = find_toolchain()
    with pytest.raises(EngineError, match="not an ELF library for arm64"):
        read_symbols(toolchain.tool("readelf"), [Path(sys.executable).resolve()])


def test_a_library_that_boards_lack_is_refused(cross_tools: None, tmp_path: Path) -> None:
    toolchain = find_toolchain()
    library = compile_library(
        tmp_path, toolchain.tool("gcc"), "-fopenmp", "-Wl,--no-as-needed", "-lgomp"
    )
    with pytest.raises(EngineError, match=r"libgomp\.so\.1"):
        read_symbols(toolchain.tool("readelf"), [library])


def test_the_loader_goes_only_where_it_is_known() -> None:
    with pytest.raises(InputError, match="does not open its library"):
        add_kernel_loader({"llama_cpp/llama_cpp.py": b"something else\n"})


# ---- the compiled wheel -------------------------------------------------------------------------


@pytest.mark.slow
class TestWheel:
    def test_holds_one_of_each_library_and_nothing_else_compiled(self, wheel: BuiltEngine) -> None:
        with zipfile.ZipFile(wheel.path) as archive:
            compiled = {n.rpartition("/")[2] for n in archive.namelist() if ".so" in n}
            names = archive.namelist()
        assert compiled == {"libllama.so", "libggml.so", "libggml-base.so"} | {
            f"libggml-cpu-{kernel}.so" for kernel in wheel.kernels
        }
        assert {"armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.6_1"} <= set(wheel.kernels)
        assert len(names) == len(set(names))
        assert not [n for n in names if n.startswith(("lib/", "include/", "bin/"))]
        assert wheel.n_bytes < 6 * 1024**2

    def test_carries_its_licences(self, wheel: BuiltEngine) -> None:
        with zipfile.ZipFile(wheel.path) as archive:
            texts = [archive.read(n).decode() for n in archive.namelist() if "/licenses/" in n]
        assert len(texts) == 2 and all("MIT" in t or "Permission is hereby" in t for t in texts)

    def test_loads_on_every_system_that_we_name(self, wheel: BuiltEngine, tmp_path: Path) -> None:
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(tmp_path)
        libraries = sorted((tmp_path / "llama_cpp/lib").iterdir())
        symbols = read_symbols(find_toolchain().tool("readelf"), libraries)
        assert not [miss for system in SYSTEMS for miss in missing_on(system, symbols)]
        assert symbols.platform_tag == wheel.tag
        assert wheel.path.name.endswith(f"-py3-none-{wheel.tag}.whl")

    def test_auditwheel_agrees_with_the_tag(self, wheel: BuiltEngine) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "auditwheel", "show", wheel.path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f'"{wheel.tag}"' in done.stdout

    def test_names_no_path_of_this_machine(self, wheel: BuiltEngine) -> None:
        with zipfile.ZipFile(wheel.path) as archive:
            for name in archive.namelist():
                data = archive.read(name)
                assert str(wheel.folder.parent).encode() not in data, name
                if name.endswith(".so"):
                    assert not re.search(rb"/(home|root|tmp|build|work)/[a-z]", data), name

    def test_packing_again_gives_the_same_bytes(self, wheel: BuiltEngine, tmp_path: Path) -> None:
        source = unpack_source(fetch_sdist(print), tmp_path / "source")
        with zipfile.ZipFile(wheel.path) as archive:
            libraries = {
                n.rpartition("/")[2]: archive.read(n)
                for n in archive.namelist() if n.endswith(".so")
            }  # fmt: skip
        assert wheel.tag
        shuffled = dict(reversed(libraries.items()))
        assert pack_wheel(source, shuffled, wheel.tag) == (
            wheel.path.name,
            wheel.path.read_bytes(),
        )

    def test_is_found_again(self, wheel: BuiltEngine) -> None:
        assert build_wheel().path == wheel.path
        assert wheel.key in {engine.key for engine in find_engines()}
        done = CliRunner().invoke(command, ["list", "--json"])
        assert wheel.key in {json.loads(line)["key"] for line in done.stdout.splitlines()}

    def test_a_damaged_cache_is_noticed(
        self, wheel: BuiltEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import shutil

        monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path))
        copy = tmp_path / "board-engine" / wheel.key
        shutil.copytree(wheel.folder, copy)
        (copy / wheel.path.name).write_bytes(b"PK")
        with pytest.raises(IntegrityError, match="not the file that was built"):
            build_wheel()

    def test_a_single_variant_shares_what_has_no_arm_generation(self, wheel: BuiltEngine) -> None:
        single = build_wheel("armv8.2-dotprod")
        assert single.kernels == ("armv8.2-dotprod",)
        assert single.n_bytes < wheel.n_bytes
        with zipfile.ZipFile(wheel.path) as every, zipfile.ZipFile(single.path) as one:
            assert "llama_cpp/lib/libggml-cpu.so" in one.namelist()
            for name in ("libllama.so", "libggml-base.so"):
                assert every.read(f"llama_cpp/lib/{name}") == one.read(f"llama_cpp/lib/{name}")


def test_static_tools_are_of_one_variant() -> None:
    done = CliRunner().invoke(command, ["build", "--tools"])
    assert isinstance(done.exception, UsageError)
