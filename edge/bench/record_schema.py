"""Types and ranges of a stored result, for every entry that a report reads: anyone may have
written the file. A missing or null entry is a figure that was not measured.
"""

import functools
from collections.abc import Mapping
from typing import Any

import boardfit.edge.fields as fields
from boardfit.device_profiles.toml_parser import decode_toml
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import InputError

#: More than any figure that a benchmark measures, and small enough to draw.
_MOST = 1e18
_COUNT, _SIGNED = fields.Whole(0, 1 << 53), fields.OrNull(fields.Real(-_MOST, _MOST))
_KINDS: Mapping[str, fields.FieldKind] = {
    "text": fields.Text(),
    "texts": fields.ListOf(fields.Text(), 1000),
    "id": fields.Text(200),
    "name": fields.Text(1000),
    "word": fields.Text(100),
    "flag": fields.Flag(),
    "count": _COUNT,
    "counts": fields.TableOf(fields.OrNull(_COUNT)),
    "index": fields.Whole(0, 100_000),
    "bytes": fields.Whole(0, fields.MAX_BYTES),
    "figure": fields.Real(0, _MOST),
    "signed": fields.Real(-_MOST, _MOST),
    "figures": fields.TableOf(_SIGNED),
    "object": fields.AnyObject(),
    "rows": fields.ListOf(fields.TableOf(_SIGNED), 1_000_000),
    "spreads": fields.TableOf(fields.OrNull(fields.AnyObject())),
}
_REQUIRED = {
    "record": frozenset(
        ("run_id", "time", "kit", "engine", "artifact", "machine", "settings", "test", "metrics")
    ),
    "test": frozenset({"kind"}),
    "artifact": frozenset({"name"}),
    "part": frozenset({"index", "of"}),
}
#: Numbers of a test that its kind of chart stands on.
_POSITIONS = {"prefill": "n_prompt", "decode": "n_depth"}


@functools.cache
def read_schemas() -> dict[str, fields.Schema]:
    """The schema of each object of a record."""
    text = read_text_beside(__file__, "record_schema.toml")

    def find_kind(name: str) -> fields.FieldKind:
        kind = _KINDS[name.removesuffix("_or_null")]
        return fields.OrNull(kind) if name.endswith("_or_null") else kind

    return {
        where: {name: find_kind(kind) for kind, names in kinds.items() for name in names}
        for where, kinds in decode_toml(text).items()
    }


def check_entries(record: Any, where: str) -> None:
    """Raise InputError that names the entry which is not as a report reads it."""
    for name, schema in read_schemas().items():
        parts = [] if name == "record" else name.split(".")
        section = functools.reduce(lambda found, part: (found or {}).get(part), parts, record)
        if section is not None:
            required = _REQUIRED.get(name, frozenset())
            place = f"{where}: {name}" if parts else where
            fields.check_fields(section, schema, place, required=required, others=True)
    position = _POSITIONS.get(record["test"]["kind"])
    if position and record["test"].get(position) is None:
        raise InputError(f"{where}: test: entry {position!r} is missing")
    for name, figure in record["metrics"].items():
        if figure is not None:
            _check_spread(figure, f"{where}: metric {fields.shown(name)}")
    _check_deadline(record.get("deadline") or {}, f"{where}: deadline")
    _check_quality(record.get("quality") or {}, f"{where}: quality")


def _check_spread(figure: Mapping[str, Any], where: str) -> None:
    fields.check_fields(figure, read_schemas()["metrics.*"], where, others=True)
    if figure.get("median") is None:
        return
    for name in ("p10", "p90") if (figure.get("n") or 0) > 1 else ():
        if figure.get(name) is None:
            raise InputError(f"{where}: entry {name!r} is missing")


def _check_deadline(section: Mapping[str, Any], where: str) -> None:
    tasks, schema = section.get("by_task") or {}, read_schemas()["deadline.summary"]
    for name, found in (("summary", section.get("summary")), *tasks.items()):
        if found is None:
            continue
        needed = frozenset[str]()
        if isinstance(found, Mapping) and found.get("hit_rate") is not None:
            needed = frozenset({"n_met", "n_accepted"})
        place = f"{where}: {fields.shown(name)}"
        fields.check_fields(found, schema, place, required=needed, others=True)


def _check_quality(card: Mapping[str, Any], where: str) -> None:
    texts = card.get("texts")
    for number, row in enumerate(texts if isinstance(texts, list) else (), 1):
        if isinstance(row, Mapping):
            figures = dict.fromkeys(("kld_mean", "kld_mean_stderr"), _SIGNED)
            fields.check_fields(row, figures, f"{where}: text {number}", others=True)
