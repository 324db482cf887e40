"""Seal a bundle: its files, its manifest, its signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boardfit.converters.documents import companions, copy_document
from boardfit.converters.formats.base import FormatArtifact
from boardfit.converters.formats.gguf.imatrix import Imatrix
from boardfit.converters.spec import ModelSpec
from boardfit.edge.bundle.bundle import MANIFEST, seal_bundle
from boardfit.edge.disk.atomic import link_or_copy
from boardfit.edge.types import Plan

if TYPE_CHECKING:
    from boardfit.converters.board.offline.parts import OfflineParts
    from boardfit.converters.build.warm import WarmState
    from boardfit.edge.trust.signing import SigningKey

MODEL_FILE = "model.gguf"


def make_manifest(
    spec: ModelSpec,
    plan: Plan,
    artifact: FormatArtifact,
    checks: Mapping[str, Any],
    imatrix: Imatrix | None,
    *,
    loss: str | None = None,
) -> dict[str, Any]:
    """The manifest but for the files. No times, no paths: the same inputs give the same id."""
    from boardfit.converters.spec import tool_versions

    location = spec.source.location
    return {
        "model": {
            "name": spec.name,
            "family": spec.family,
            "arch": spec.arch,
            "license": spec.source.license,
            "n_params": spec.shape.n_params,
            "n_ctx_train": spec.shape.n_ctx_train,
            **({"pooling": spec.pooling} if spec.is_embedder else {}),
            "source": {
                "kind": spec.source.kind,
                "location": location if spec.source.kind == "hub" else Path(location).name,
                "revision": spec.source.revision,
                "files": dict(spec.source.files),
                "fingerprint": spec.source.fingerprint,
                **spec.source.provenance(),
            },
            "notes": [*spec.notes, *([loss] if loss else [])],
        },
        "recipe": {
            "id": plan.recipe,
            "bpw": round(artifact.bpw, 4),
            "tensor_types": dict(artifact.types),
            "imatrix": imatrix_identity(imatrix),
        },
        "plan": plan.to_dict(),
        "checks": dict(checks),
        "tools": {**tool_versions(), **spec.converter},
    }


def imatrix_identity(imatrix: Imatrix | None) -> str | None:
    return None if imatrix is None else imatrix.digest


def seal(
    spec: ModelSpec,
    plan: Plan,
    artifact: FormatArtifact,
    manifest: Mapping[str, Any],
    directory: Path,
    *,
    add_engine: Callable[[Path, Plan], OfflineParts] | None = None,
    warm: Sequence[WarmState] = (),
    key: SigningKey | None = None,
) -> None:
    """Assemble one bundle directory, and sign its manifest with `key`."""
    directory.mkdir(parents=True)
    # The model has the name of its format, of its recipe in the folder of a build.
    names = {n: MODEL_FILE if n.endswith(".gguf") else n for n in artifact.files}
    roles = {name: artifact.files[made] for made, name in names.items()}
    hashes = {name: artifact.hashes[made] for made, name in names.items()}
    for made, name in names.items():  # boards with the same recipe share the bytes on disk
        link_or_copy(artifact.folder / made, directory / name)
    if spec.chat_template and "chat_template.jinja" not in roles:
        (directory / "chat_template.jinja").write_text(spec.chat_template, encoding="utf-8")
        roles["chat_template.jinja"] = "template"
    if spec.tokenizer_dir:
        for name, role in companions(spec.tokenizer_dir):
            copy_document(spec.tokenizer_dir / name, directory / name)
            roles[name] = role
    for state in warm:
        (directory / state.name).parent.mkdir(exist_ok=True)
        link_or_copy(state.path, directory / state.name)
        roles[state.name] = "prefix"
    if warm:
        manifest = {**manifest, "warm": [state.to_dict() for state in warm]}
    if add_engine:
        parts = add_engine(directory, plan)
        roles |= parts.roles
        manifest = {**manifest, "board": parts.manifest}
    if key is not None:
        from boardfit.edge.trust.release import new_release

        manifest = {**manifest, **new_release().entries()}
    seal_bundle(directory, manifest, roles, hashes)
    if key is not None:
        from boardfit.edge.bundle.sign import add_signature

        add_signature(directory, (directory / MANIFEST).read_bytes(), key)
