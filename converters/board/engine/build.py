"""Build an engine for the board, or find a built one: wheels and static tools."""

import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.board.engine import source as sdist
from boardfit.converters.board.engine import store
from boardfit.converters.board.engine import variants as v
from boardfit.converters.board.engine.pack import pack_wheel, read_symbols
from boardfit.converters.board.engine.toolchain import (
    Toolchain,
    compile_targets,
    configure,
    find_toolchain,
    strip,
)
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
) -> store.BuiltEngine:
    """The engine's wheel for arm64, from the cache or compiled now (5 minutes on two cores).

    `variant` is `all` or a key of SINGLE_VARIANTS. A single-variant wheel takes the libraries
    without Arm generation in them from the `all` wheel and compiles the kernels alone.

    Raises UsageError for an unknown variant, EngineMissingError when the cross toolchain or the
    source is missing, EngineError when compiling fails, IntegrityError for a damaged cache.
    """
    reporter = reporter or Reporter()
    own = v.ALL_FLAGS if variant == v.ALL_VARIANTS else v.march_flags(variant)
    flags = (*v.COMMON_FLAGS, *v.SHARED_FLAGS, *own)
    toolchain = find_toolchain()
    key = store.make_key(
        [sdist.VERSION, sdist.SDIST_SHA256, variant, flags, toolchain.version, PACKING]
    )
    if found := store.load_engine(key):
        return found
    base = None if variant == v.ALL_VARIANTS else build_wheel(jobs=jobs, reporter=reporter)
    with store.building(key, reporter.stage) as work:
        if found := store.load_engine(key):  # another process built it while we waited
            return found
        bench = _Bench(work, toolchain, jobs, reporter)
        kernels = bench.unpack(variant)
        targets = ["ggml-base", "ggml", "llama"] if base is None else ["ggml"]
        bench.compile(f"the engine for arm64 ({variant})", flags, targets)
        libraries = {
            path.name: strip(toolchain, path)
            for path in sorted((work / "build/bin").glob("lib*.so"))
        }
        if base is not None:
            libraries |= shared_libraries(base.path)
        stripped = _fresh_folder(work / "stripped")
        for name, data in libraries.items():
            (stripped / name).write_bytes(data)
        symbols = read_symbols(toolchain.tool("readelf"), sorted(stripped.iterdir()))
        name, data = pack_wheel(bench.source, libraries, symbols.platform_tag)
        glibc = ".".join(map(str, symbols.glibc))
        return bench.publish(
            "wheel", variant, key, {name: data}, kernels, glibc=glibc, tag=symbols.platform_tag
        )


def build_tools(
    variant: str, *, jobs: int | None = None, reporter: Reporter | None = None
) -> store.BuiltEngine:
    """Static `llama-bench` and `llama-completion` for arm64: for phones, which have no Python. A
    static program cannot choose its kernels, so phones get a pair (TOOL_PAIR) and their cpuinfo
    decides. The pair is built together: all but the kernels is the same. Raises as `build_wheel`.
    """
    reporter = reporter or Reporter()
    v.march_flags(variant)
    toolchain = find_toolchain()
    wanted = TOOL_PAIR if variant in TOOL_PAIR else (variant,)
    keys = {name: tools_key(name, toolchain) for name in wanted}
    if found := store.load_engine(keys[variant]):
        return found
    with store.building(f"tools-{keys[wanted[0]]}", reporter.stage) as work:
        bench = _Bench(work, toolchain, jobs, reporter)
        bench.unpack(variant)
        for name, key in keys.items():
            if store.load_engine(key) is None:
                bench.compile(f"static tools for arm64 ({name})", tools_flags(name), TOOLS)
                files = {tool: strip(toolchain, work / "build/bin" / tool) for tool in TOOLS}
                files[LICENSE] = (bench.source / "vendor/llama.cpp/LICENSE").read_bytes()
                bench.publish("tools", name, key, files, (name,))
    found = store.load_engine(keys[variant])
    assert found is not None
    return found


def tools_flags(variant: str) -> tuple[str, ...]:
    return (*v.COMMON_FLAGS, *v.STATIC_FLAGS, *v.march_flags(variant))


def tools_key(variant: str, toolchain: Toolchain) -> str:
    flags = tools_flags(variant)
    return store.make_key(
        [sdist.VERSION, sdist.SDIST_SHA256, "tools", flags, TOOLS, toolchain.version, PACKING]
    )


@dataclass
class _Bench:
    """One build under way, in a folder of its own."""

    work: Path
    toolchain: Toolchain
    jobs: int | None
    reporter: Reporter
    source: Path = Path()
    started_s: float = 0.0

    def unpack(self, variant: str) -> tuple[str, ...]:
        """Unpack the source below `work` and fit it to the compiler; returns its kernels."""
        self.started_s = time.monotonic()
        self.reporter.stage("unpacking the engine's source")
        self.source = sdist.unpack_source(
            sdist.fetch_sdist(self.reporter.stage), self.work / "source"
        )
        if variant != v.ALL_VARIANTS:
            return (variant,)
        lists = self.source / "vendor/llama.cpp/ggml/src/CMakeLists.txt"
        kept, dropped = v.keep_buildable_variants(lists, self.toolchain.tool("gcc"))
        if dropped:
            why = f"left out, too new for {self.toolchain.version}"
            self.reporter.stage(f"{why}: {', '.join(dropped)}")
        return tuple(kept)

    def compile(self, what: str, flags: Sequence[str], targets: Sequence[str]) -> None:
        self.reporter.stage(f"compiling {what}")
        build = self.work / "build"
        configure(self.source / "vendor/llama.cpp", build, self.toolchain, flags)
        compile_targets(build, targets, self.jobs or os.cpu_count() or 1, self.reporter.progress)

    def publish(
        self,
        kind: str,
        variant: str,
        key: str,
        files: Mapping[str, bytes],
        kernels: tuple[str, ...],
        **of_wheel: str,
    ) -> store.BuiltEngine:
        """Store the files; programs can be executed."""
        partial = _fresh_folder(self.work / "out")
        for name, data in files.items():
            write_atomic(partial / name, data, mode=0o755 if name in TOOLS else 0o644)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        seconds = round(time.monotonic() - self.started_s, 1)
        self.started_s = time.monotonic()
        built = store.BuiltEngine(
            kind, sdist.VERSION, variant, key, partial, hashes, kernels,
            self.toolchain.version, seconds, **of_wheel,
        )  # fmt: skip
        return store.save_engine(built, partial)


def shared_libraries(wheel: Path) -> dict[str, bytes]:
    """The libraries of a wheel that hold no kernels for one Arm generation."""
    names = ("libllama.so", "libggml-base.so")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(f"llama_cpp/lib/{name}") for name in names}


def _fresh_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
