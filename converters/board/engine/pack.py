"""Pack compiled libraries and the package's Python files into the board's wheel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from boardfit.converters.board.engine.source import PACKAGE, VERSION
from boardfit.converters.board.engine.wheel_file import wheel_name, write_wheel
from boardfit.edge.errors import InputError

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
