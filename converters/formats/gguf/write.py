"""Write artifacts: checks before the first byte, facts after the last."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from boardfit.converters.formats.base import FormatArtifact
from boardfit.converters.formats.gguf.assign import TypedTensor, assign_types, file_order
from boardfit.converters.formats.gguf.header import file_layout
from boardfit.converters.formats.gguf.imatrix import Imatrix
from boardfit.converters.formats.gguf.kernels import GgmlKernels, load_kernels
from boardfit.converters.formats.gguf.recipe import GgufRecipe
from boardfit.converters.formats.gguf.resume import PartialFile, journal_path, partial_path
from boardfit.converters.formats.gguf.stream import FilePlan, check_values, run_pass
from boardfit.converters.spec import ModelSpec
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.errors import DoesNotFitError, InputError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.kind import open_regular
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import format_bytes


def write_gguf(
    spec: ModelSpec,
    recipe: GgufRecipe,
    out: Path,
    *,
    imatrix: Imatrix | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> FormatArtifact:
    """Convert and quantize `spec` into the file `out`, in one pass. See `write_many`."""
    jobs = [(recipe, out)]
    return write_many(spec, jobs, imatrix=imatrix, threads=threads, progress=progress)[0]


def write_many(
    spec: ModelSpec,
    jobs: Sequence[tuple[GgufRecipe, Path]],
    *,
    imatrix: Imatrix | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[FormatArtifact, ...]:
    """Write several recipes of one model, reading the checkpoint once.

    `threads` is the number of converting threads (default: the CPUs that this process may use).
    `progress(done, total)` counts weights. `spec`'s tensors are read from several threads at once.

    Files appear whole or not at all, in the place of earlier ones. After a kill or Ctrl-C the same
    call continues.

    Raises UsageError if an output is being written by another process, DoesNotFitError if the disk
    is too small (before the first byte), InputError naming the tensor for NaN, infinity or values
    that the type cannot hold, EngineMissingError without ggml.
    """
    started = time.monotonic()
    kernels = load_kernels()
    plans = _plan_jobs(spec, jobs, imatrix)
    _check_disk(plans)
    kernels.prepare({name for plan in plans for name in plan.types})
    files = _open_files(spec, plans, imatrix, kernels)
    try:
        run_pass(plans, files, kernels, imatrix, threads or usable_threads(), progress)
        digests = [file.commit() for file in files]
    except Exception as error:
        for file in files:
            file.discard()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DoesNotFitError(f"the disk is full: {error}") from error
        raise
    finally:  # Ctrl-C included: what the journals promise stays
        for file in files:
            file.close()
    return tuple(
        describe_artifact(plan.out, plan.recipe, plan.layout.tensors, plan.layout.nbytes, digest,
                          started, file.n_resumed)
        for plan, file, digest in zip(plans, files, digests, strict=True)
    )  # fmt: skip


def _plan_jobs(
    spec: ModelSpec, jobs: Sequence[tuple[GgufRecipe, Path]], imatrix: Imatrix | None
) -> list[FilePlan]:
    """One pass has one order; it is the quantized recipes' order if there is one among them."""
    leading = next((recipe for recipe, _ in jobs if recipe.is_quantized), jobs[0][0])
    names = [tensor.name for tensor in file_order(spec, leading)]
    plans = []
    for recipe, out in jobs:
        typed = assign_types(spec, recipe, has_imatrix=imatrix is not None)
        layout = file_layout(spec, recipe, typed, imatrix)
        index_of = {entry.tensor.name: index for index, entry in enumerate(typed)}
        plans.append(FilePlan(recipe, out, layout, [index_of[name] for name in names]))
    return plans


def _check_disk(plans: Sequence[FilePlan]) -> None:
    needed: Counter[int] = Counter()
    folders: dict[int, Path] = {}
    for plan in plans:
        device = plan.out.parent.stat().st_dev
        folders[device] = plan.out.parent
        needed[device] += plan.layout.nbytes - _count_allocated(partial_path(plan.out))
    for device, n_bytes in needed.items():
        free = shutil.disk_usage(folders[device]).free
        if n_bytes > free:
            raise DoesNotFitError(
                f"the disk of {folders[device]} has {format_bytes(free)} free; "
                f"{format_bytes(n_bytes)} are needed",
                shortfall_bytes=n_bytes - free,
                next_step=f"Free {format_bytes(n_bytes - free)}, or write to another disk.",
            )


def _count_allocated(path: Path) -> int:
    """Bytes that an earlier, interrupted run holds on the disk already."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _open_files(
    spec: ModelSpec, plans: Sequence[FilePlan], imatrix: Imatrix | None, kernels: GgmlKernels
) -> list[PartialFile]:
    files: list[PartialFile] = []
    try:
        for plan in plans:
            fingerprint = _fingerprint(spec, plan, imatrix, kernels)
            try:
                file = PartialFile(plan.out, plan.layout, plan.steps, fingerprint)
            except OSError as error:
                partial_path(plan.out).unlink(missing_ok=True)
                journal_path(plan.out).unlink(missing_ok=True)
                raise DoesNotFitError(
                    f"{format_bytes(plan.layout.nbytes)} cannot be reserved for {plan.out}: "
                    f"{error.strerror}"
                ) from error
            files.append(file)
    except Exception:
        for file in files:
            if file.n_resumed:
                file.close()
            else:
                file.discard()
        raise
    return files


def _fingerprint(
    spec: ModelSpec, plan: FilePlan, imatrix: Imatrix | None, kernels: GgmlKernels
) -> str:
    """What the bytes depend on. The header covers metadata, shapes, types and offsets."""
    parts = {
        "header": hashlib.sha256(plan.layout.header).hexdigest(),
        "steps": plan.steps,
        "source": spec.source.fingerprint,
        "files": _file_states(spec),
        "imatrix": imatrix.digest if imatrix else None,
        "kernels": kernels.version,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_states(spec: ModelSpec) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each source file: the source's fingerprint does not read the
    weights, and they may be edited between a kill and the next run.
    """
    location = Path(spec.source.location)
    states = []
    for name, size in sorted(spec.source.files.items()):
        path = location / name if location.is_dir() else location
        try:
            states.append((name, size, path.stat().st_mtime_ns))
        except OSError:
            states.append((name, size, 0))
    return states


def describe_artifact(
    out: Path,
    recipe: GgufRecipe,
    tensors: Sequence[TypedTensor],
    nbytes: int,
    sha256: str,
    started: float,
    n_resumed: int = 0,
) -> FormatArtifact:
    """State what a written file holds. `started` is a reading of the monotonic clock."""
    n_values = sum(entry.tensor.n_elements for entry in tensors)
    return FormatArtifact(
        folder=out.parent,
        recipe=recipe.id,
        files={out.name: "model"},
        hashes={out.name: sha256},
        nbytes=nbytes,
        types=dict(Counter(entry.type for entry in tensors)),
        bpw=8 * sum(entry.nbytes for entry in tensors) / max(1, n_values),
        seconds=time.monotonic() - started,
        n_resumed=n_resumed,
    )


def usable_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_CHUNK = 4 * 1024 * 1024


def write_as_is(
    spec: ModelSpec,
    recipe: GgufRecipe,
    out: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> FormatArtifact:
    """Bring the model into the file `out` without converting a weight: the same bytes where it is
    one whole file; a split model is written anew. Raises InputError for NaN or infinity, or a file
    that changed since it was opened; else what `write_gguf` raises.
    """
    if not is_whole_file(spec):
        return write_gguf(spec, recipe, out, threads=threads, progress=progress)
    started = time.monotonic()
    check_values(spec.tensors, load_kernels(), threads or usable_threads(), progress)
    (n_bytes,) = spec.source.files.values()
    digest = _copy(Path(spec.source.location), out, n_bytes)
    return describe_artifact(out, recipe, assign_types(spec, recipe), n_bytes, digest, started)


def is_whole_file(spec: ModelSpec) -> bool:
    """Whether one file holds the model's tensors and no other ones."""
    if len(spec.source.files) != 1:
        return False
    return len(read_header(Path(spec.source.location)).tensors) == len(spec.tensors)


def _copy(source: Path, out: Path, n_bytes: int) -> str:
    """Copy a file that is `n_bytes` long, fsynced, and return its sha256."""
    digest, beside, n_copied = hashlib.sha256(), out.with_name(out.name + ".part"), 0
    opened, _ = open_regular(source)
    with opened as file, beside.open("wb") as target:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
            n_copied += len(chunk)
        target.flush()
        os.fsync(target.fileno())
    if n_copied != n_bytes:
        beside.unlink()
        raise InputError(
            f"{source} has {n_copied} bytes now, and had {n_bytes} when it was opened",
            next_step="let no other program write to it, and build again",
        )
    beside.replace(out)
    fsync_directory(out.parent)
    return digest.hexdigest()
