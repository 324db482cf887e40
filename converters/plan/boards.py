"""List the boards that hold a model, and those that are fast enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.converters.plan.cells import speed_cells
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import Candidate, Planner
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DeadlineError, DoesNotFitError, EngineError, UsageError
from boardfit.edge.units import format_bytes, printable


@dataclass(frozen=True)
class BoardRow:
    """One board: the plan chosen there, or None and why not."""

    profile: DeviceProfile
    chosen: Candidate | None
    why: str = ""


def board_rows(
    spec: ModelSpec,
    profiles: Iterable[DeviceProfile],
    options: PlanOptions,
    *,
    scale: WeighingScale | None = None,
    learned: Learned | None = None,
) -> list[BoardRow]:
    """Every board with its plan; those that reach what was asked first, the smallest RAM first."""
    scale = scale or WeighingScale(spec, has_imatrix=options.has_imatrix)
    rows = []
    for profile in profiles:
        chosen, why = None, ""
        try:
            chosen = Planner(spec, profile, options, scale=scale, learned=learned).choose()
        except DoesNotFitError as error:
            why = f"{format_bytes(error.shortfall_bytes)} too much"
        except DeadlineError as error:
            why = "no speed known" if "no speed is known" in str(error) else "too slow"
        except EngineError:
            why = "the engine does not run there"
        except UsageError as error:
            why = str(error)
        rows.append(BoardRow(profile, chosen, why))
    return sorted(rows, key=lambda r: (r.chosen is None, r.profile.ram_bytes, r.profile.id))


def board_lines(spec: ModelSpec, rows: Sequence[BoardRow], options: PlanOptions) -> list[str]:
    """The boards as a table, those that will not do named with the reason."""
    good = [row for row in rows if row.chosen is not None]
    width = max((len(row.profile.id) for row in rows), default=5)
    lines = [
        f"{printable(spec.name)}: {len(good)} of {len(rows)} boards",
        "",
        f"  {'board':<{width}}  {'free':>9}  recipe   context  {'peak':>9}"
        "    decode       first token",
    ]
    for row in good:
        c = row.chosen
        assert c is not None
        lines.append(
            f"  {row.profile.id:<{width}}  {format_bytes(row.profile.free_ram_bytes):>9}"
            f"  {c.recipe:<8} {c.n_ctx:>7}  {format_bytes(c.peak_bytes):>9}"
            f"  {speed_cells(c, options)}  {_basis(row)}"
        )
    bad = [row for row in rows if row.chosen is None]
    if bad:
        lines += ["", "  these do not fit, or are too slow:"]
        lines += [f"  {row.profile.id:<{width}}  {row.why}" for row in bad]
    return lines


def board_record(row: BoardRow, options: PlanOptions) -> dict[str, Any]:
    """One board as a JSON-able object."""
    c = row.chosen
    record: dict[str, Any] = {"device": row.profile.id, "reached": c is not None, "why": row.why}
    if c is not None:
        record |= {
            "recipe": c.recipe,
            "n_ctx": c.n_ctx,
            "peak_bytes": c.peak_bytes,
            "decode_tps": c.user_tps(options.n_users),
            "ttft_s": c.ttft_s(options.n_prompt, options.n_users),
            "basis": _basis(row),
        }
    return record


def _basis(row: BoardRow) -> str:
    measured = row.chosen is not None and row.chosen.measured is not None
    return "measured here" if measured else row.profile.basis
