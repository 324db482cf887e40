"""Use measurements of `edge bench` instead of a plan's estimates.

A result counts for a plan when it was taken on the same board, with the same recipe, architecture
and artifact size. Results lie in the user's data folder and in `device_profiles/measured/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit import device_profiles
from boardfit.device_profiles.catalog import THIS_MACHINE, user_profiles
from boardfit.device_profiles.cost.speed import SpeedEstimate
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bench.store import data_directory, read_results
from boardfit.edge.errors import InputError

# Header lines (the kit's version, an imatrix's name) may differ, weights may not.
_SAME_SIZE = 0.01
# A prediction is made for this prompt; the result nearest to it stands for it.
_PROMPT = 512
_LEAST_BOUND = 0.03


@dataclass(frozen=True)
class MeasuredRun:
    """Medians of one run; `bound` is half of the 10–90 % range over the median, at least 3 %."""

    decode_tps: float | None
    prefill_tps: float | None
    anonymous_bytes: int | None
    n_threads: int | None
    bound: float
    time: str

    def replace_estimate(self, predicted: SpeedEstimate) -> SpeedEstimate:
        """The estimate with the measured figures in its place, each with its own bound."""
        decode, prefill = self.decode_tps, self.prefill_tps
        return SpeedEstimate(
            decode or predicted.decode_tps,
            prefill or predicted.prefill_tps,
            self.bound if decode else predicted.decode_bound,
            self.bound if prefill else predicted.prefill_bound,
        )


class Learned:
    """Stored results, read once. `notes` says which files could not be used."""

    def __init__(self, records: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
        self._records = records
        self.notes = tuple(notes)
        self._facts: Mapping[str, Any] | None = None

    def find(
        self,
        profile: DeviceProfile,
        recipe: str,
        arch: str,
        artifact_bytes: int,
        same_size: float = _SAME_SIZE,
    ) -> MeasuredRun | None:
        """The newest run of this artifact on this board; None when there is none. Sizes may differ
        by the share `same_size`: more where the size is predicted.
        """
        runs: dict[str, list[Mapping[str, Any]]] = {}
        for record in self._records:
            artifact = record["artifact"]
            size = artifact.get("n_bytes")
            if (
                record["settings"].get("recipe") == recipe
                and artifact.get("arch") in (arch, None)
                and isinstance(size, int)
                and abs(size - artifact_bytes) <= same_size * artifact_bytes
                and self._taken_on(record, profile)
            ):
                runs.setdefault(str(record["run_id"]), []).append(record)
        if not runs:
            return None
        return _summary(max(runs.values(), key=lambda run: str(run[0]["time"])))

    def _taken_on(self, record: Mapping[str, Any], profile: DeviceProfile) -> bool:
        """Whether the machine is this board: a bundle for a Pi may have been tried on a laptop."""
        machine = record["machine"]
        if profile.id == THIS_MACHINE:
            if self._facts is None:
                from boardfit.edge.bench.conditions import (
                    machine_facts,  # takes longer than planning
                )

                self._facts = machine_facts()
            keys = ("model", "cpu", "n_cores", "arch")
            return all(machine.get(key) == self._facts.get(key) for key in keys)
        model, ram = machine.get("model"), machine.get("ram_bytes")
        if isinstance(model, str) and isinstance(ram, int):
            from boardfit.device_profiles.spellings import BoardNames
            from boardfit.edge.probe.identity import match_boards

            if known := match_boards(BoardNames((model,)), ram):
                return profile.id in (board.id for board in known)
        return bool(record.get("board") == profile.id and profile.id in user_profiles())


def read_learned() -> Learned:
    """All stored results. A file that cannot be read is noted and left out."""
    shipped = Path(device_profiles.__file__).parent / "measured"
    records: list[dict[str, Any]] = []
    notes: list[str] = []
    for folder in (shipped, data_directory()):
        for path in sorted(folder.glob("*.jsonl")):
            try:
                found = read_results([path])
            except InputError as error:
                notes.append(f"results left out: {error}")
                continue
            records += found.records
            notes += found.notes
    return Learned(records, notes)


def _summary(run: Sequence[Mapping[str, Any]]) -> MeasuredRun:
    decodes = [r for r in run if r["test"].get("kind") == "decode"]
    prefills = [r for r in run if r["test"].get("kind") == "prefill"]
    decode = min(decodes, key=lambda r: r["test"].get("n_depth") or 0, default=None)
    prefill = min(
        prefills, key=lambda r: abs((r["test"].get("n_prompt") or 0) - _PROMPT), default=None
    )
    peaks = [v for r in run if (v := _figure(r, "peak_anon_bytes", "maximum")) is not None]
    threads = run[0]["settings"].get("n_threads")
    return MeasuredRun(
        decode_tps=_figure(decode, "decode_tps"),
        prefill_tps=_figure(prefill, "prefill_tps"),
        anonymous_bytes=int(max(peaks)) if peaks else None,
        n_threads=threads if isinstance(threads, int) else None,
        bound=max(
            _LEAST_BOUND, _half_range(decode, "decode_tps"), _half_range(prefill, "prefill_tps")
        ),
        time=str(run[0]["time"]),
    )


def _figure(record: Mapping[str, Any] | None, name: str, kind: str = "median") -> float | None:
    figure = (record or {}).get("metrics", {}).get(name)
    value = figure.get(kind) if isinstance(figure, dict) else None
    return float(value) if value else None


def _half_range(record: Mapping[str, Any] | None, name: str) -> float:
    median = _figure(record, name)
    low, high = _figure(record, name, "p10"), _figure(record, name, "p90")
    return (high - low) / 2 / median if median and low and high else 0.0
