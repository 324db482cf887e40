"""Types and ranges of a stored result, for every entry that a report reads.

Anyone may have written a result file. An entry that is missing or null is a figure that was not
measured. An entry of another type is refused, with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boardfit.edge.errors import InputError
from boardfit.edge.fields import (
    MAX_BYTES,
    AnyObject,
    Flag,
    ListOf,
    OrNull,
    Real,
    Schema,
    TableOf,
    Text,
    Whole,
    check_fields,
    shown,
)

#: More than any figure that a benchmark measures, and small enough to draw.
_MOST = 1e18
_TEXT, _COUNT, _BYTES = OrNull(Text()), OrNull(Whole(0, 1 << 53)), OrNull(Whole(0, MAX_BYTES))
_FIGURE, _SIGNED = OrNull(Real(0, _MOST)), OrNull(Real(-_MOST, _MOST))
_WORDS, _OBJECT = OrNull(ListOf(Text(), 1000)), OrNull(AnyObject())

HEAD: Schema = {
    "run_id": Text(200),
    "time": Text(200),
    "board": _TEXT,
    "repeat": _TEXT,
    "flags": _WORDS,
    "figures": OrNull(ListOf(AnyObject(), 1_000_000)),
    **dict.fromkeys(("predicted", "baseline", "states", "imported", "quality"), _OBJECT),
    "deadline": _OBJECT,
    "part": _OBJECT,
}
_STATE: Schema = dict.fromkeys(("temp_c", "clock_hz", "throttled", "load_1min"), _SIGNED)
#: The objects of a record. What they hold beyond these entries is not read.
SECTIONS: Mapping[str, Schema] = {
    "kit": {"version": _TEXT, "commit": _TEXT, "changed": OrNull(Flag())},
    "engine": {
        **dict.fromkeys(("name", "version", "build", "quant", "kv_type"), _TEXT),
        **dict.fromkeys(("n_ctx", "n_threads", "n_batch"), _COUNT),
        "details": _OBJECT,
    },
    "artifact": {
        "name": Text(1000),
        **dict.fromkeys(("sha256", "bundle_id", "arch", "license"), _TEXT),
        "n_bytes": _BYTES,
    },
    "machine": {
        **dict.fromkeys(
            ("model", "profile", "cpu", "arch", "governor", "os", "kernel", "power_sensor"), _TEXT
        ),
        "n_cores": _COUNT,
        **dict.fromkeys(("ram_bytes", "memory_limit_bytes"), _BYTES),
    },
    "settings": {
        **dict.fromkeys(("n_ctx", "n_threads", "n_batch"), _COUNT),
        **dict.fromkeys(("kv_type", "recipe"), _TEXT),
    },
    "test": {
        "kind": Text(100),
        **dict.fromkeys(("label", "page_cache", "prompt_sha256"), _TEXT),
        **dict.fromkeys(("n_prompt", "n_depth", "n_gen", "n_repeats"), _COUNT),
    },
    "predicted": {
        **dict.fromkeys(("device", "basis"), _TEXT),
        **dict.fromkeys(("decode_tps", "prefill_tps", "error_bound"), _FIGURE),
        **dict.fromkeys(("peak_bytes", "anonymous_bytes", "budget_bytes"), _BYTES),
    },
    "baseline": {"rss_bytes": _BYTES},
    "states": {"before": _OBJECT, "after": _OBJECT},
    "imported": {**dict.fromkeys(("tool", "file", "file_sha256"), _TEXT), "not_measured": _WORDS},
    "part": {"index": Whole(0, 100_000), "of": Whole(0, 100_000)},
}
_REQUIRED = {
    "test": frozenset({"kind"}),
    "artifact": frozenset({"name"}),
    "part": frozenset({"index", "of"}),
}
#: Numbers of a test that its kind of chart stands on.
_POSITIONS = {"prefill": frozenset({"n_prompt"}), "decode": frozenset({"n_depth"})}
_SPREAD: Schema = {
    "n": _COUNT,
    **dict.fromkeys(("median", "p10", "p90", "minimum", "maximum", "mean"), _SIGNED),
}
_SUMMARY: Schema = {
    **dict.fromkeys(
        ("n_met", "n_accepted", "n_refused", "n_shortened"), OrNull(Whole(0, 1 << 53))
    ),
    **dict.fromkeys(
        ("hit_rate", "hit_rate_low", "hit_rate_high", "refused_rightly_share", "given_share",
         "whole_sentence_share", "worst_overrun_share", "worst_overrun_s"), _SIGNED,
    ),
    **dict.fromkeys(("first_s", "total_s"), OrNull(TableOf(_SIGNED))),
    "adjustments": OrNull(TableOf(_COUNT)),
}  # fmt: skip


def check_entries(record: Mapping[str, Any], where: str) -> None:
    """Raise InputError that names the entry which is not as a report reads it."""
    check_fields(record, HEAD, where, others=True)
    for name, schema in SECTIONS.items():
        if (section := record.get(name)) is not None:
            required = _REQUIRED.get(name, frozenset())
            check_fields(section, schema, f"{where}: {name}", required=required, others=True)
    _check_test(record["test"], f"{where}: test")
    for name, figure in record["metrics"].items():
        if figure is not None:
            _check_spread(figure, f"{where}: metric {shown(name)}")
    for when in ("before", "after"):
        if (state := (record.get("states") or {}).get(when)) is not None:
            check_fields(state, _STATE, f"{where}: states.{when}", others=True)
    for number, figures in enumerate(record.get("figures") or (), 1):
        for name, value in figures.items():
            if not _SIGNED.accepts(value):
                raise InputError(
                    f"{where}: repetition {number} holds {shown(value)} as {shown(name)}, which "
                    "is not a figure"
                )
    _check_deadline(record.get("deadline") or {}, f"{where}: deadline")
    _check_quality(record.get("quality") or {}, f"{where}: quality")


def _check_test(test: Mapping[str, Any], where: str) -> None:
    for name in sorted(_POSITIONS.get(test["kind"], ())):
        if test.get(name) is None:
            raise InputError(f"{where}: entry {name!r} is missing")


def _check_spread(figure: Mapping[str, Any], where: str) -> None:
    check_fields(figure, _SPREAD, where, others=True)
    if figure.get("median") is None:
        return
    for name in ("p10", "p90") if (figure.get("n") or 0) > 1 else ():
        if figure.get(name) is None:
            raise InputError(f"{where}: entry {name!r} is missing")


def _check_deadline(section: Mapping[str, Any], where: str) -> None:
    check_fields(
        section, {"notes": _WORDS, "by_task": _OBJECT, "summary": _OBJECT}, where, others=True
    )
    tasks = section.get("by_task") or {}
    for name, found in (("summary", section.get("summary")), *tasks.items()):
        if found is None:
            continue
        needed = frozenset[str]()
        if isinstance(found, Mapping) and found.get("hit_rate") is not None:
            needed = frozenset({"n_met", "n_accepted"})
        check_fields(found, _SUMMARY, f"{where}: {shown(name)}", required=needed, others=True)


def _check_quality(card: Mapping[str, Any], where: str) -> None:
    texts = card.get("texts")
    for number, row in enumerate(texts if isinstance(texts, list) else (), 1):
        if isinstance(row, Mapping):
            figures = dict.fromkeys(("kld_mean", "kld_mean_stderr"), _SIGNED)
            check_fields(row, figures, f"{where}: text {number}", others=True)
