"""Build an engine for the board, or find a built one: wheels and static tools."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import zipfile
from pathlib import Path

from boardfit.converters.board.engine import variants as v
from boardfit.converters.board.engine.compile import compile_targets, configure
from boardfit.converters.board.engine.pack import pack_wheel
from boardfit.converters.board.engine.source import (
    SDIST_SHA256,
    VERSION,
    fetch_sdist,
    unpack_source,
)
from boardfit.converters.board.engine.store import (
    BuiltEngine,
    building,
    load_engine,
    make_key,
    save_engine,
)
from boardfit.converters.board.engine.symbols import read_symbols
from boardfit.converters.board.engine.toolchain import Toolchain, find_toolchain, strip
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.terminal.progress import Reporter

#: Counted up when packing changes, so that old wheels are not taken for new ones.
PACKING = 1
TOOLS = ("llama-bench", "llama-completion")
#: Beside the tools; a wheel has it inside.
LICENSE = "LICENSE.llama.cpp"
#: For every arm64 core, and for cores with dot products.
TOOL_PAIR = ("armv8.0", "armv8.2-dotprod")


def build_wheel(
    variant: str = v.ALL_VARIANTS, *, jobs: int | None = None, reporter: Reporter | None = None
) -> BuiltEngine:
    """The engine's wheel for arm64, from the cache or compiled now (5 minutes on two cores).

    `variant` is `all` or a key of SINGLE_VARIANTS. A single-variant wheel takes the libraries
    without Arm generation in them from the `all` wheel and compiles the kernels alone.

    Raises UsageError for an unknown variant, EngineMissingError when the cross toolchain or the
    source is missing, EngineError when compiling fails, IntegrityError for a damaged cache.
    """
    reporter = reporter or Reporter()
    if variant == v.ALL_VARIANTS:
        flags: tuple[str, ...] = (*v.COMMON_FLAGS, *v.SHARED_FLAGS, *v.ALL_FLAGS)
    else:
        march = v.single_variant(variant).march
        flags = (*v.COMMON_FLAGS, *v.SHARED_FLAGS, f"-DGGML_CPU_ARM_ARCH={march}")
    toolchain = find_toolchain()
    key = make_key([VERSION, SDIST_SHA256, variant, flags, toolchain.version, PACKING])
    if found := load_engine(key):
        return found
    base = None if variant == v.ALL_VARIANTS else build_wheel(jobs=jobs, reporter=reporter)
    with building(key, reporter.stage) as work:
        if found := load_engine(key):  # another process built it while we waited
            return found
        started = time.monotonic()
        source, kernels = prepare(work, toolchain, variant, reporter)
        targets = ["ggml-base", "ggml", "llama"] if base is None else ["ggml"]
        reporter.stage(f"compiling the engine for arm64 ({variant})")
        compile_source(source, work / "build", toolchain, flags, targets, jobs, reporter)
        libraries = {
            path.name: strip(toolchain, path)
            for path in sorted((work / "build/bin").glob("lib*.so"))
        }
        if base is not None:
            libraries |= shared_libraries(base.path)
        return publish_wheel(
            work, source, toolchain, key, variant, kernels, libraries, time.monotonic() - started
        )


def build_tools(
    variant: str, *, jobs: int | None = None, reporter: Reporter | None = None
) -> BuiltEngine:
    """Static `llama-bench` and `llama-completion` for arm64: for phones, which have no Python.

    A static program cannot choose its kernels when it runs, so phones get a pair (TOOL_PAIR) and
    their cpuinfo (`asimddp`) decides. The pair is built together: all but the kernels is the same.
    Raises as `build_wheel`.
    """
    reporter = reporter or Reporter()
    v.single_variant(variant)
    toolchain = find_toolchain()
    wanted = TOOL_PAIR if variant in TOOL_PAIR else (variant,)
    keys = {name: tools_key(name, toolchain) for name in wanted}
    if found := load_engine(keys[variant]):
        return found
    with building(f"tools-{keys[wanted[0]]}", reporter.stage) as work:
        source, _ = prepare(work, toolchain, variant, reporter)
        for name, key in keys.items():
            if load_engine(key) is None:
                compile_tools(name, key, work, source, toolchain, jobs, reporter)
    found = load_engine(keys[variant])
    assert found is not None
    return found


def tools_flags(variant: str) -> tuple[str, ...]:
    march = v.single_variant(variant).march
    return (*v.COMMON_FLAGS, *v.STATIC_FLAGS, f"-DGGML_CPU_ARM_ARCH={march}")


def tools_key(variant: str, toolchain: Toolchain) -> str:
    flags = tools_flags(variant)
    return make_key([VERSION, SDIST_SHA256, "tools", flags, TOOLS, toolchain.version, PACKING])


def compile_tools(
    variant: str,
    key: str,
    work: Path,
    source: Path,
    toolchain: Toolchain,
    jobs: int | None,
    reporter: Reporter,
) -> BuiltEngine:
    """Compile and store the tools of one variant, in the build folder of its pair."""
    started = time.monotonic()
    reporter.stage(f"compiling static tools for arm64 ({variant})")
    compile_source(source, work / "build", toolchain, tools_flags(variant), TOOLS, jobs, reporter)
    partial = fresh_folder(work)
    files = {}
    for name in TOOLS:
        data = strip(toolchain, work / "build/bin" / name)
        write_atomic(partial / name, data, mode=0o755)
        files[name] = hashlib.sha256(data).hexdigest()
    license = (source / "vendor/llama.cpp/LICENSE").read_bytes()
    write_atomic(partial / LICENSE, license)
    files[LICENSE] = hashlib.sha256(license).hexdigest()
    seconds = round(time.monotonic() - started, 1)
    built = BuiltEngine("tools", VERSION, variant, key, partial, files, (variant,),
                        toolchain.version, seconds)  # fmt: skip
    return save_engine(built, partial)


def prepare(
    work: Path, toolchain: Toolchain, variant: str, reporter: Reporter
) -> tuple[Path, tuple[str, ...]]:
    """Unpack the source below `work` and fit it to the compiler; returns it and its kernels."""
    reporter.stage("unpacking the engine's source")
    source = unpack_source(fetch_sdist(reporter.stage), work / "source")
    if variant != v.ALL_VARIANTS:
        return source, (variant,)
    kept, dropped = v.keep_buildable_variants(
        source / "vendor/llama.cpp/ggml/src/CMakeLists.txt", toolchain.tool("gcc")
    )
    if dropped:
        reporter.stage(f"left out, too new for {toolchain.version}: {', '.join(dropped)}")
    return source, tuple(kept)


def compile_source(
    source: Path,
    build: Path,
    toolchain: Toolchain,
    flags: tuple[str, ...],
    targets: tuple[str, ...] | list[str],
    jobs: int | None,
    reporter: Reporter,
) -> None:
    configure(source / "vendor/llama.cpp", build, toolchain, flags)
    compile_targets(build, targets, jobs or os.cpu_count() or 1, reporter.progress)


def shared_libraries(wheel: Path) -> dict[str, bytes]:
    """The libraries of a wheel that hold no kernels for one Arm generation."""
    names = ("libllama.so", "libggml-base.so")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(f"llama_cpp/lib/{name}") for name in names}


def fresh_folder(work: Path) -> Path:
    partial = work / "out"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def publish_wheel(
    work: Path,
    source: Path,
    toolchain: Toolchain,
    key: str,
    variant: str,
    kernels: tuple[str, ...],
    libraries: dict[str, bytes],
    seconds: float,
) -> BuiltEngine:
    """Tag, pack and store a wheel of stripped libraries."""
    stripped = work / "stripped"
    shutil.rmtree(stripped, ignore_errors=True)
    stripped.mkdir()
    for name, data in libraries.items():
        (stripped / name).write_bytes(data)
    symbols = read_symbols(toolchain.tool("readelf"), sorted(stripped.iterdir()))
    name, data = pack_wheel(source, libraries, symbols.platform_tag)
    partial = fresh_folder(work)
    write_atomic(partial / name, data)
    built = BuiltEngine(
        kind="wheel",
        version=VERSION,
        variant=variant,
        key=key,
        folder=partial,
        files={name: hashlib.sha256(data).hexdigest()},
        kernels=kernels,
        compiler=toolchain.version,
        seconds=round(seconds, 1),
        glibc=".".join(map(str, symbols.glibc)),
        tag=symbols.platform_tag,
    )
    return save_engine(built, partial)
