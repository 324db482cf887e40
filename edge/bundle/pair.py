"""Pair two artifacts in one bundle: the model, and a smaller one for short time limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from boardfit.edge.bundle.bundle import SMALL, Bundle, open_bundle, seal_bundle
from boardfit.edge.disk.atomic import link_or_copy
from boardfit.edge.disk.rooted import check_free, work_beside
from boardfit.edge.errors import DoesNotFitError, InputError, UsageError
from boardfit.edge.units import format_bytes

if TYPE_CHECKING:
    from boardfit.edge.trust.signing import SigningKey

SMALL_FILE = "small-model.gguf"


def pair_bundles(big: Path, small: Path, output: Path, sign: SigningKey | None = None) -> Bundle:
    """Make a bundle at `output` of everything of `big` and the model of `small`, verified, with its
    plan. A signature of `big` does not carry over: `sign` makes a new one.

    Raises UsageError if `output` exists or the boards differ, InputError if one cannot be paired,
    DoesNotFitError if the board cannot hold both at once.
    """
    check_free(output)
    one, two = open_bundle(big, verify=True), open_bundle(small, verify=True)
    _check_pair(one, two)
    with work_beside(output, "pair") as work:
        made = work.path / "bundle"
        roles, hashes = {}, {}
        for file in one.files:
            link_or_copy(one.path / file.name, made / file.name)
            roles[file.name], hashes[file.name] = file.role, file.sha256
        link_or_copy(two.model_path, made / SMALL_FILE)
        roles[SMALL_FILE], hashes[SMALL_FILE] = SMALL, two.model_file.sha256
        manifest = {k: v for k, v in one.manifest.items() if k not in ("files", "kind", "schema")}
        manifest["small"] = {key: two.manifest[key] for key in ("model", "recipe", "plan")}
        seal_bundle(made, manifest, roles, hashes)
        if sign is not None:
            from boardfit.edge.bundle.sign import sign_bundle

            sign_bundle(made, sign)
        work.publish("bundle")
    return open_bundle(output, verify=False)


def _check_pair(one: Bundle, two: Bundle) -> None:
    for bundle in (one, two):
        if bundle.small is not None:
            raise InputError(f"{bundle.path} holds two models already")
        if not bundle.model_file.name.endswith(".gguf"):
            raise InputError(f"{bundle.path} holds no GGUF; only those are paired")
    if one.plan.device != two.plan.device:
        raise UsageError(
            f"{one.path} was built for {one.plan.device}, {two.path} for {two.plan.device}",
            next_step=f"edge build the smaller one for {one.plan.device}",
        )
    if two.model_file.n_bytes >= one.model_file.n_bytes:
        raise UsageError(f"the model of {two.path} is not smaller than that of {one.path}")
    need, budget = one.plan.peak_bytes + two.plan.peak_bytes, one.plan.budget_bytes
    if need > budget:
        raise DoesNotFitError(
            f"both models together need {format_bytes(need)}; {one.plan.device} leaves "
            f"{format_bytes(budget)}",
            next_step="build one of them smaller, or with a shorter --ctx",
        )
