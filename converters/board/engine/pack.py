"""Pack compiled libraries and the package's Python files into the board's wheel.

A wheel's platform tag promises the oldest glibc that it loads on. It is computed from the symbol
versions in the libraries instead of believing the build machine.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.board.engine.source import PACKAGE, VERSION
from boardfit.converters.board.engine.wheel_file import wheel_name, write_wheel
from boardfit.edge.errors import EngineError, InputError
from boardfit.edge.process.child import decode_output, run_child

_VERSION = re.compile(r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([0-9]+(?:\.[0-9]+)*)\b")
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+?)\]")

# What every board has; anything else would have to be in the wheel.
_SYSTEM_LIBRARIES = frozenset(
    ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0",
     "ld-linux-aarch64.so.1")
)  # fmt: skip
# After this line of llama_cpp/llama_cpp.py the library is open; everything imports that file.
_LOADED = "_lib = load_shared_library(_lib_base_name, _base_path)\n"
# ggml looks for run-time kernels beside the program and in the working directory, that is beside
# python3: never where the wheel puts them. (ggml-backend-reg.cpp: ggml_backend_load_all_from_path;
# its report of what it loaded goes to stderr, so the log is off meanwhile.)
_LOAD_KERNELS = """
# Added by boardfit: load the kernel library that suits this CPU best from our own folder.
_ggml = ctypes.CDLL(str(_base_path / "libggml.so"))
_ggml_base = ctypes.CDLL(str(_base_path / "libggml-base.so"))
_quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
_ggml_base.ggml_log_set(_quiet, None)
_ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
_ggml.ggml_backend_load_all_from_path.restype = None
_ggml.ggml_backend_load_all_from_path(str(_base_path).encode())
_ggml_base.ggml_log_set(None, None)
_ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
if not _ggml.ggml_backend_reg_count():
    raise RuntimeError(f"none of the kernel libraries in {_base_path} runs on this CPU")
del _ggml, _ggml_base, _quiet
"""


@dataclass(frozen=True)
class Symbols:
    """What a set of libraries needs: the newest version per symbol family, and library names."""

    versions: Mapping[str, tuple[int, ...]]
    libraries: frozenset[str]

    @property
    def glibc(self) -> tuple[int, ...]:
        # 2.17 is where arm64 began: no glibc for it is older.
        return max(self.versions.get("GLIBC", (2, 17)), (2, 17))

    @property
    def platform_tag(self) -> str:
        """`manylinux_2_34_aarch64`: PEP 600's name for the oldest glibc that will do."""
        return f"manylinux_{self.glibc[0]}_{self.glibc[1]}_aarch64"


def read_symbols(readelf: str, libraries: Iterable[Path]) -> Symbols:
    """Symbol versions and libraries that ELF files need, read with binutils' readelf. Raises
    EngineError when one of them is not an ELF file for arm64, or needs a library that is neither
    one of them nor on every board.
    """
    paths = list(libraries)
    versions: dict[str, tuple[int, ...]] = {}
    needed: set[str] = set()
    for path in paths:
        done = run_child(
            [readelf, "--wide", "--file-header", "--dynamic", "--version-info",
             str(path.absolute())]
        )  # fmt: skip
        listed, why = decode_output(done.stdout), decode_output(done.stderr).strip()
        if done.returncode or "AArch64" not in listed:
            raise EngineError(f"{path.name} is not an ELF library for arm64: {why}")
        needed.update(_NEEDED.findall(listed))
        for family, text in _VERSION.findall(listed):
            version = tuple(int(part) for part in text.split("."))
            versions[family] = max(versions.get(family, ()), version)
    if strange := sorted(needed - _SYSTEM_LIBRARIES - {path.name for path in paths}):
        raise EngineError(f"the engine would need {', '.join(strange)} on the board")
    return Symbols(versions, frozenset(needed))


def pack_wheel(
    source: Path, libraries: Mapping[str, bytes], platform_tag: str
) -> tuple[str, bytes]:
    """File name and bytes of the wheel made of the source's Python files and of `libraries` (file
    name → stripped bytes). Run-time kernels among them (`libggml-cpu-…`) get their loader.

    Raises InputError when the source is not laid out as this version's is.
    """
    files = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in sorted((source / "llama_cpp").rglob("*"))
        if path.is_file() and "lib" not in path.relative_to(source).parts[1:-1]
        and "__pycache__" not in path.parts
    }  # fmt: skip
    if any(name.startswith("libggml-cpu-") for name in libraries):
        add_kernel_loader(files)
    files |= {f"llama_cpp/lib/{name}": data for name, data in libraries.items()}
    licenses = {
        "licenses/LICENSE.md": (source / "LICENSE.md").read_bytes(),
        "licenses/llama.cpp/LICENSE": (source / "vendor/llama.cpp/LICENSE").read_bytes(),
    }
    tag = f"py3-none-{platform_tag}"
    metadata = (source / "PKG-INFO").read_text(encoding="utf-8")
    data = write_wheel(PACKAGE, VERSION, tag, metadata, files, dist_info=licenses)
    return wheel_name(PACKAGE, VERSION, tag), data


def add_kernel_loader(files: dict[str, bytes]) -> None:
    """Make llama_cpp/llama_cpp.py load the kernels that lie beside the library."""
    name = "llama_cpp/llama_cpp.py"
    text = files[name].decode()
    if text.count(_LOADED) != 1:
        raise InputError(f"{name} of {VERSION} does not open its library where expected")
    files[name] = text.replace(_LOADED, _LOADED + _LOAD_KERNELS).encode()
