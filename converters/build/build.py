"""Plan, convert, verify and bundle a model: one reading, one bundle per board.

Everything is made in `OUT.partial/` beside the output and renamed at the end. A killed build leaves
that folder; the same command continues in it (`boardfit.edge.disk.rooted`: it is marked as ours).

    OUT.partial/artifacts/<recipe>.gguf     one per recipe, however many boards share it
    OUT.partial/bundles/<device>/           sealed bundles
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boardfit.converters.build import verify
from boardfit.converters.build.jobs import (
    BuildJob,
    check_devices,
    check_output,
    is_output,
    make_jobs,
)
from boardfit.converters.build.seal import imatrix_identity, make_manifest, seal
from boardfit.converters.build.warm import check_warm, make_warm, read_prompts
from boardfit.converters.formats.base import GGUF, Conversion, FormatArtifact, find_kept, keep
from boardfit.converters.formats.converted import ConvertedFormat
from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.imatrix import Imatrix
from boardfit.converters.formats.gguf.recipe import AS_IS, GgufRecipe, load_recipe, make_as_is
from boardfit.converters.formats.gguf.write import write_as_is, write_many
from boardfit.converters.imatrix.files import read_imatrix
from boardfit.converters.plan.learned import read_learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.weights import describe_requantizing, find_main_type
from boardfit.converters.quality.building import QualityOptions, measure_cards
from boardfit.converters.quality.card import Card
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge import __version__
from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.disk.rooted import work_beside
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.files.kind import open_regular
from boardfit.edge.template.tool_format import ToolFormat
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.types import Plan, Thinking

if TYPE_CHECKING:
    from boardfit.converters.board.offline.parts import OfflineParts
    from boardfit.edge.trust.signing import SigningKey


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build. `imatrix` is upstream's imatrix file, or a text to compute one from.
    `with_engine` adds what each board needs to run its bundle offline; `python` is the board's
    Python where it is not the profile's. `sign` puts a signature beside every manifest.
    `accept_tokenizer` goes on where the engine does not normalize text as the checkpoint does.
    `warm` are texts of system prompts whose states go into the bundles.
    """

    spec: ModelSpec
    devices: tuple[DeviceProfile, ...]
    output: Path
    options: PlanOptions = field(default_factory=PlanOptions)
    imatrix: Path | None = None
    overwrite: bool = False
    threads: int | None = None
    with_engine: bool = False
    python: str | None = None
    quality: QualityOptions = field(default_factory=QualityOptions)
    formats: tuple[str, ...] = (GGUF,)
    sign: SigningKey | None = None
    thinking: Thinking = "auto"
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    accept_tokenizer: bool = False
    warm: Sequence[Path] = ()


@dataclass(frozen=True)
class Built:
    """One finished bundle."""

    bundle: Bundle
    artifact: FormatArtifact


def build(request: BuildRequest, reporter: Reporter) -> list[Built]:
    """Build one bundle per device and format: at `output`, or several below it (`jobs.job_name`).
    Raises UsageError when the output exists, DoesNotFitError when a board, the host's memory or the
    disk is too small (before the first byte), UnsupportedModelError for a family that a format
    cannot hold, IntegrityError when a result fails its checks; nothing is left at `output` then.
    """
    check_devices(request.devices)
    check_output(request.output, request.overwrite)
    reporter.stage("planning")
    jobs = make_jobs(
        request.spec, request.devices, request.formats, request.options, read_learned()
    )
    losses = describe_losses(request.spec, jobs)
    for text in losses.values():
        reporter.say(text)
    prompts = read_prompts(request.warm)
    if prompts:
        check_warm(request.spec, jobs)
    adders = {job.name: adding_engine(request, job.device, reporter) for job in jobs}
    reporter.stage("checking the tokenizer")
    template = verify.check_template(request.spec, request.thinking, request.template_variables)
    tools = verify.find_tools(request.spec)
    vocabulary = template | verify.check_vocabulary(
        request.spec, accept_normalization=request.accept_tokenizer
    )
    with work_beside(request.output, "build", resume=True, stale=["bundles"]) as work:
        folder = work.path / "artifacts"
        imatrix = obtain_imatrix(request, folder, reporter)
        artifacts = make_all_artifacts(request, jobs, imatrix, folder, reporter)
        reporter.stage("checking the result")
        checks = check_artifacts(request.spec, jobs, artifacts)
        cards = measure_cards(
            request.spec,
            [job.plan for job in jobs],
            {(job.plan.engine, job.plan.recipe): artifacts[job.name].path for job in jobs},
            request.quality,
            folder,
            threads=request.threads,
            reporter=reporter,
        )
        reporter.stage("sealing")
        bundles = work.path / "bundles"
        for job in jobs:
            artifact = artifacts[job.name]
            # An imatrix names itself in the file: a few bytes that no plan can know beforehand.
            plan = dataclasses.replace(
                job.plan,
                artifact_bytes=artifact.nbytes,
                thinking=request.thinking,
                template_variables=request.template_variables,
            )
            checked = vocabulary | checks[artifact.path]
            used = None if job.is_converted else imatrix
            card = cards[plan.engine, plan.recipe, plan.kv_type]
            manifest = make_manifest(
                request.spec, plan, artifact, checked, used, loss=losses.get(plan.recipe)
            )
            model = built_file(artifact.path).replace(sha256=artifact.sha256)
            form = ToolFormat.from_dict(tools["tools"]) if prompts else None
            warm = make_warm(prompts, job, plan, model, folder / f"warm-{job.name}", form)
            seal(
                request.spec,
                plan,
                artifact,
                manifest | tools | {"quality": add_tokenizer(request, card, vocabulary)},
                bundles / (job.name or "bundle"),
                warm=warm,
                add_engine=adders[job.name],
                key=request.sign,
            )
        fsync_directory(bundles)
        made = "bundles/bundle" if len(jobs) == 1 else "bundles"
        work.publish(made, is_output if request.overwrite else None)
    return [
        Built(open_bundle(request.output / job.name, verify=False), artifacts[job.name])
        for job in jobs
    ]


def add_tokenizer(request: BuildRequest, card: Card, vocabulary: Mapping[str, Any]) -> Card:
    """The card, with what was accepted of the tokenizer."""
    found = vocabulary.get("vocabulary")
    limits = found.get("limits") if isinstance(found, dict) else None
    return {**card, "tokenizer": list(limits)} if request.accept_tokenizer and limits else card


def check_artifacts(
    spec: ModelSpec, jobs: Sequence[BuildJob], artifacts: Mapping[str, FormatArtifact]
) -> dict[Path, dict[str, Any]]:
    """Check every artifact once, by its path: boards with equal plans share one."""
    checks: dict[Path, dict[str, Any]] = {}
    for job in jobs:
        artifact = artifacts[job.name]
        if artifact.path not in checks:
            checks[artifact.path] = (
                verify.check_in_engine(artifact.path, job.plan, spec)
                if job.is_converted
                else verify.check_artifact(artifact.path, spec)
            )
    return checks


def make_all_artifacts(
    request: BuildRequest,
    jobs: Sequence[BuildJob],
    imatrix: Imatrix | None,
    folder: Path,
    reporter: Reporter,
) -> dict[str, FormatArtifact]:
    """The artifact of every job by its name: all GGUFs in one pass over the source."""
    recipes = {
        name: make_as_is(find_main_type(request.spec)) if name == AS_IS else load_recipe(name)
        for name in (job.plan.recipe for job in jobs if not job.is_converted)
    }
    made = make_artifacts(request, recipes, imatrix, folder, reporter)
    converted: dict[str, FormatArtifact] = {}
    found: dict[str, FormatArtifact] = {}
    for job in jobs:
        if not job.is_converted:
            found[job.name] = made[job.plan.recipe]
            continue
        if job.key not in converted:
            reporter.stage(f"converting to {job.target.id}")
            conversion = Conversion(
                request.spec, job.plan, job.device, folder / job.key, threads=request.threads,
                stage=reporter.stage, progress=reporter.progress,
            )  # fmt: skip
            target = job.target.load()
            assert isinstance(target, ConvertedFormat)  # others are streamed
            converted[job.key] = target.convert(conversion)
        found[job.name] = converted[job.key]
    return found


def describe_losses(spec: ModelSpec, jobs: Sequence[BuildJob]) -> dict[str, str]:
    """State what is lost by quantizing a quantized file again, by recipe."""
    recipes = {job.plan.recipe for job in jobs if not job.is_converted} - {AS_IS}
    texts = {name: describe_requantizing(spec, load_recipe(name)) for name in sorted(recipes)}
    return {name: text for name, text in texts.items() if text}


def obtain_imatrix(request: BuildRequest, folder: Path, reporter: Reporter) -> Imatrix | None:
    """Read the given imatrix file, or compute one from the given text through the engine."""
    if request.imatrix is None:
        return None
    if not looks_like_text(request.imatrix):
        return read_imatrix(request.imatrix)
    from boardfit.converters.imatrix.collect import compute

    folder.mkdir(exist_ok=True)
    # Activations come from the unquantized model: an F16 file that is removed afterwards.
    full, result = folder / "imatrix-source.gguf", folder / "imatrix.gguf"
    reporter.stage("writing the F16 model that activations are measured on")
    write_many(
        request.spec, [(load_recipe("f16"), full)], threads=request.threads,
        progress=reporter.progress,
    )  # fmt: skip
    reporter.stage("weighing activations")
    result.unlink(missing_ok=True)
    try:
        compute(built_file(full), request.imatrix, result, progress=reporter.progress)
    finally:
        full.unlink(missing_ok=True)
    return read_imatrix(result)


def looks_like_text(path: Path) -> bool:
    """A calibration text rather than an imatrix file: no zero byte near its start."""
    file, _ = open_regular(path)
    with file:
        head = file.read(4096)
    return b"\0" not in head and not head.startswith(b"GGUF")


def make_artifacts(
    request: BuildRequest,
    recipes: Mapping[str, GgufRecipe],
    imatrix: Imatrix | None,
    folder: Path,
    reporter: Reporter,
) -> dict[str, FormatArtifact]:
    """One GGUF per recipe, written in one pass; whole ones of an interrupted build are kept."""
    folder.mkdir(exist_ok=True)
    identity = json.dumps(
        [request.spec.source.fingerprint, imatrix_identity(imatrix), __version__], sort_keys=True
    )
    records = {recipe: folder / f"{recipe}.json" for recipe in recipes}
    found = {recipe: find_kept(record, folder, identity) for recipe, record in records.items()}
    missing = [recipes[recipe] for recipe, artifact in found.items() if artifact is None]
    if AS_IS in [recipe.id for recipe in missing]:
        reporter.stage("taking the file as it stands")
        artifact = write_as_is(
            request.spec, recipes[AS_IS], folder / f"{AS_IS}.gguf", threads=request.threads,
            progress=reporter.progress,
        )  # fmt: skip
        found[AS_IS] = keep(artifact, records[AS_IS], identity)
    jobs = [(r, folder / f"{r.id}.gguf") for r in missing if r.id != AS_IS]
    if jobs:
        reporter.stage(describe_stage(request.spec, [recipe for recipe, _ in jobs]))
        for artifact in write_many(
            request.spec,
            jobs,
            imatrix=imatrix,
            threads=request.threads,
            progress=reporter.progress,
        ):
            found[artifact.recipe] = keep(artifact, records[artifact.recipe], identity)
    return {recipe: artifact for recipe, artifact in found.items() if artifact is not None}


def describe_stage(spec: ModelSpec, recipes: Sequence[GgufRecipe]) -> str:
    """Name what a pass does: it quantizes, or it copies where no tensor changes its type."""
    names = ", ".join(recipe.id for recipe in recipes)
    if any(e.type != e.tensor.source_type for r in recipes for e in assign_types(spec, r)):
        return f"quantizing to {names}"
    return f"copying: the file is {names} already, all {len(spec.tensors)} tensors stay as they are"


def adding_engine(
    request: BuildRequest, device: DeviceProfile, reporter: Reporter
) -> Callable[[Path, Plan], OfflineParts] | None:
    """What puts the board's engine into a bundle folder; None when none was asked for. Raises
    UsageError now, before anything is quantized, for a board that no engine is built for.
    """
    if not request.with_engine:
        return None
    from boardfit.converters.board.offline.parts import add_engine, check_board

    check_board(device, request.python)
    return lambda directory, plan: add_engine(
        directory, plan, device, reporter, name=request.spec.name, python=request.python
    )
