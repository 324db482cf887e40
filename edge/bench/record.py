"""From finished runs to result records (see `boardfit.edge.bench.store`)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from boardfit.edge import __version__
from boardfit.edge.bench.conditions import machine_facts
from boardfit.edge.bench.runner import TestRun
from boardfit.edge.bench.trace_rows import compact_load, compact_trace
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.process.child import SubprocessError, decode_output, run_child
from boardfit.edge.types import EngineInfo, Plan
from boardfit.edge.units import printable


@dataclass(frozen=True)
class MeasuredArtifact:
    """What was measured: the artifact's name, path-free identity, and the plan when it has one."""

    name: str
    sha256: str | None
    n_bytes: int
    bundle_id: str | None = None
    arch: str | None = None
    license: str | None = None
    plan: Plan | None = None
    quality: Mapping[str, Any] | None = None

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> MeasuredArtifact:
        """All of its files together count, where there are several."""
        model = bundle.manifest["model"]
        return cls(
            name=printable(bundle.name),
            sha256=bundle.model_file.sha256,
            n_bytes=bundle.plan.artifact_bytes,
            bundle_id=bundle.id,
            arch=model.get("arch"),
            license=model.get("license"),
            plan=bundle.plan,
            quality=bundle.manifest.get("quality"),
        )


def make_records(
    runs: list[TestRun],
    subject: MeasuredArtifact,
    engine: EngineInfo,
    repeat_command: str,
    baseline: Mapping[str, Any],
    *,
    states: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """One record per test of a run. `states` is the `machine_state` `before` and `after`."""
    origin_ns = min(
        [t.request_start_ns for run in runs for t in run.traces]
        + [t.start_ns for run in runs for t in run.loads],
        default=0,
    )
    names = ("n_ctx", "n_threads", "n_batch", "kv_type")
    card = dict(subject.quality) if isinstance(subject.quality, Mapping) else None
    shared: dict[str, Any] = {
        "run_id": uuid.uuid4().hex,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kit": kit_facts(),
        "engine": {**asdict(engine), "details": dict(engine.details)},
        "artifact": {
            key: getattr(subject, key)
            for key in ("name", "sha256", "n_bytes", "bundle_id", "arch", "license")
        },
        "board": subject.plan.device if subject.plan else None,
        "machine": machine_facts(),
        "settings": {
            **{name: getattr(engine, name) for name in names},
            "recipe": subject.plan.recipe if subject.plan else None,
        },
        "predicted": predicted(subject.plan),
        "quality": card if card and len(json.dumps(card)) <= MAX_CARD_BYTES else None,
        "baseline": dict(baseline),
        "states": dict(states) if states else None,
        "repeat": repeat_command,
    }
    return [
        {
            **shared,
            "test": {
                **asdict(run.test),
                "label": run.test.label,
                "n_repeats": len(run.figures),
                "prompt_sha256": run.prompt_sha256,
            },
            "metrics": run.metrics(),
            "flags": run.flags,
            "traces": [
                *(compact_trace(trace, origin_ns) for trace in run.traces),
                *(compact_load(trace, origin_ns) for trace in run.loads),
            ],
            "figures": run.figures,
            "part": {"index": index, "of": len(runs)},
        }
        for index, run in enumerate(runs)
    ]


def predicted(plan: Plan | None) -> dict[str, Any] | None:
    """The plan's promises, to stand beside what was measured."""
    names = (
        *("device", "decode_tps", "prefill_tps", "peak_bytes", "anonymous_bytes", "budget_bytes"),
        *("error_bound", "basis"),
    )
    return None if plan is None else {name: getattr(plan, name) for name in names}


# A card is a page of figures; what is larger is no card.
MAX_CARD_BYTES = 64 * 1024


def kit_facts() -> dict[str, str | bool | None]:
    """`version`, `commit` (None where unknown) and whether the checkout had been changed."""
    commit, changed = _installed_commit(), None
    if commit is None:
        commit, changed = _checkout_commit(Path(__file__).resolve().parents[2])
    return {"version": __version__, "commit": commit, "changed": changed}


def _installed_commit() -> str | None:
    """The commit that pip installed from (direct_url.json, PEP 610)."""
    try:
        text = metadata.distribution("boardfit").read_text("direct_url.json")
        found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _checkout_commit(root: Path) -> tuple[str | None, bool | None]:
    """HEAD of a checkout, and whether tracked files differ from it."""
    if not (root / ".git").exists():
        return None, None
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        return head or None, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, SubprocessError):
        return None, None


def _git(root: Path, *words: str) -> str:
    done = run_child(["git", "-C", str(root), *words], timeout_s=10)
    done.check_returncode()
    return decode_output(done.stdout)
