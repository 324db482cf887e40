"""Run upstream's `convert_hf_to_gguf.py` on one checkpoint, in its pinned environment.

No file of upstream's is changed. Several of its tokenizers ask for `trust_remote_code=True`;
transformers never gets that answer here. The folder holds no code and no pickles either.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from boardfit.edge.errors import InputError, UnsupportedModelError

_POLL_S = 0.5
_NEXT_STEP = "look for a GGUF of this model, and give edge that file"
_PACKAGES = ("torch", "transformers")


def run(request: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Convert `request["model"]` to `request["outfile"]`; return the versions of the tools."""
    sys.path.insert(0, request["tree"])
    transformers: Any = importlib.import_module("transformers")
    refuse_remote_code(transformers)
    upstream: Any = importlib.import_module("convert_hf_to_gguf")
    sys.argv = ["convert_hf_to_gguf.py", request["model"], *request["options"]]
    sys.argv += ["--outfile", request["outfile"], "--outtype", request["outtype"]]
    done = threading.Event()
    watch = (Path(request["outfile"]), request["n_bytes"], report, done)
    threading.Thread(target=_watch, args=watch, daemon=True).start()
    try:
        upstream.main()
    except (MemoryError, InputError):
        raise
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"upstream's converter does not know this model: {_first_line(error)}",
            next_step=_NEXT_STEP,
        ) from error
    except SystemExit as error:
        if error.code:
            raise UnsupportedModelError(
                "upstream's converter does not know this model", next_step=_NEXT_STEP
            ) from error
    except Exception as error:
        raise InputError(
            f"upstream's converter fails on the checkpoint: {type(error).__name__}: "
            f"{_first_line(error)}",
            next_step="check that its files belong together; one that needs code from its "
            f"repository is not converted. Or {_NEXT_STEP}",
        ) from error
    finally:
        done.set()
    return {"tools": {name: version(name) for name in _PACKAGES}}


def refuse_remote_code(transformers: Any) -> None:
    """Answer for every caller: code from a repository is never run."""
    for name in ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModel"):
        found = getattr(transformers, name)
        found.from_pretrained = _without_remote_code(found.from_pretrained)


def _without_remote_code(load: Any) -> Any:
    @functools.wraps(load)
    def from_pretrained(*arguments: Any, **named: Any) -> Any:
        return load(*arguments, **{**named, "trust_remote_code": False})

    return from_pretrained


def _watch(file: Path, n_bytes: int, report: Any, done: threading.Event) -> None:
    while not done.wait(_POLL_S):
        if file.exists():
            report.progress(min(file.stat().st_size, n_bytes), n_bytes)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
