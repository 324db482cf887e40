"""What the engine makes of a GGUF header, asked without any weights.

The library makes the tensors of any architecture up from the header's keys
(llama_model_init_from_user), and a context on them without memory for either (`no_alloc`); its log
has the size of every cache and of the compute buffer. Run as a program, this reads jobs and writes
answers, one JSON line each. A job has a process of its own, which the engine may end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf

from boardfit.edge.process.child import python_argv, run_child

Keys = Mapping[str, Any]
#: Tokens, KV type, micro-batch.
Context = tuple[int, str, int]
_FOLDER = Path(__file__).resolve().parents[2]


def write_header(path: Path, arch: str, keys: Keys) -> None:
    """Write a GGUF of these keys, given without the architecture's prefix, and of no tensors."""
    writer, types = gguf.GGUFWriter(path, arch), gguf.GGUFValueType
    kinds = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}
    for key, value in keys.items():
        name = key if key.startswith(("tokenizer.", "xielu.")) else f"{arch}.{key}"
        if isinstance(value, list):
            writer.add_key_value(name, value, types.ARRAY, sub_type=kinds[type(value[0])])
        else:
            writer.add_key_value(name, value, kinds[type(value)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def measure_caches(
    jobs: Sequence[tuple[str, Keys]], contexts: Sequence[Context]
) -> list[dict[str, Any]]:
    """For each architecture and keys, `caches` and `compute`: MiB of every cache and of the compute
    buffer in the engine's log, for each context; or `error`, its last words.
    """
    return _answer([(arch, keys, contexts) for arch, keys in jobs])


def list_tensors(arch: str, keys: Keys) -> list[tuple[str, tuple[int, ...]]]:
    """Every tensor that the engine would take for these keys, optional ones included: name and
    dimensions in ggml's order. Its memory is reserved meanwhile, but not touched.
    """
    answer = _answer([(arch, keys, None)])[0]
    if "error" in answer:
        raise RuntimeError(f"the engine makes no {arch} of these keys: {answer['error']}")
    return [(name, tuple(dims)) for name, dims in answer["tensors"]]


def _answer(jobs: Sequence[tuple[str, Keys, Sequence[Context] | None]]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    argv = python_argv("lab.memory.header_engine", folder=_FOLDER)
    done = run_child(argv, input=lines.encode(), timeout_s=600)
    found = [json.loads(x) for x in done.stdout.decode().splitlines() if x.startswith('{"')]
    if len(found) != len(jobs):
        raise RuntimeError(
            f"{len(found)} answers to {len(jobs)} jobs: {done.stderr.decode()[-500:]}"
        )
    return found


_SIZE = re.compile(r"\b[KVRSP] \(\w+\): +([\d.]+) MiB")
_COMPUTE = re.compile(r"compute buffer size = +([\d.]+) MiB")


def _ask(arch: str, keys: Keys, contexts: Sequence[Context] | None) -> dict[str, Any]:
    import llama_cpp.llama_cpp as lib

    log: list[str] = []

    @lib.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
    def note(_level: int, text: bytes, _data: object) -> None:
        log.append(text.decode("utf-8", "replace"))

    lib.llama_log_set(note, ctypes.c_void_p(0))
    lib.llama_backend_init()
    params: Any = lib.llama_model_default_params()
    params.no_alloc, params.load_mtp = contexts is not None, True
    create: Any = lib.llama_model_init_from_user
    create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, type(params)]
    create.restype = ctypes.c_void_p
    base = _load_ggml()
    tensors: list[tuple[str, list[int]]] = []

    def take(tensor: int, _data: object) -> None:
        # struct ggml_tensor (ggml.h): type, buffer, then ne[4].
        dims = list((ctypes.c_int64 * 4).from_address(tensor + 16))
        tensors.append((base.ggml_get_name(tensor).decode(), dims))

    taken = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(take)
    model = create(_read_header(base, arch, keys), taken, None, params)
    if not model:
        return {"error": "".join(log[-4:])}
    if contexts is None:
        return {"tensors": tensors}
    caches, compute = [], []
    for n_ctx, kv_type, n_ubatch in contexts:
        log.clear()
        settings: Any = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = n_ctx, 1
        settings.n_batch = settings.n_ubatch = n_ubatch
        settings.type_k = settings.type_v = getattr(lib, f"GGML_TYPE_{kv_type.upper()}")
        settings.flash_attn_type, settings.swa_full, settings.n_outputs_max = 1, False, 1
        context = lib.llama_init_from_model(ctypes.c_void_p(model), settings)
        if not context:
            return {"error": "".join(log[-4:])}
        caches.append([float(size) for size in _SIZE.findall("".join(log))])
        compute.append(sum(float(size) for size in _COMPUTE.findall("".join(log))))
        lib.llama_free(context)
    return {"caches": caches, "compute": compute}


class _GgufParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def _load_ggml() -> Any:
    from boardfit.edge.probe.ggml import find_engine_folder, library_name

    folder = find_engine_folder()
    assert folder is not None
    base = ctypes.CDLL(str(folder / library_name("ggml-base")))
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.gguf_init_from_file.argtypes = [ctypes.c_char_p, _GgufParams]
    base.ggml_get_name.restype = ctypes.c_char_p
    base.ggml_get_name.argtypes = [ctypes.c_void_p]
    return base


def _read_header(base: Any, arch: str, keys: Keys) -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "header.gguf"
        write_header(path, arch, keys)
        return int(base.gguf_init_from_file(os.fsencode(path), _GgufParams(True, None)))


def main() -> None:
    import llama_cpp.llama_cpp  # noqa: F401  # once, before there are children

    os.environ["GGML_NO_BACKTRACE"] = "1"
    for line in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException), os.fdopen(writer, "w") as file:
                file.write(json.dumps(_ask(*json.loads(line))))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            answer = file.read()
        os.waitpid(pid, 0)
        print(answer or '{"error": "the engine ended its process"}', flush=True)


if __name__ == "__main__":
    main()
