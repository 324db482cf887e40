"""Results that anyone may have written: refused with the entry's name, or shown in every format."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from boardfit.edge.bench.importers import read_any
from boardfit.edge.bench.store import KIND, SCHEMA, sealed
from boardfit.edge.errors import EdgeError, InputError
from boardfit.edge.report.command import render_report
from boardfit.edge.report.compare_command import fleet_data, fleet_lines, read_sides
from boardfit.edge.report.figures import group_runs
from boardfit.edge.report.kinds import find_kind, key_figures, run_lines
from boardfit.edge.report.verify import verify_run
from tests.edge.report.stored import records, some_runs

ODD = [None, True, -1, 10**400, 1e308, "", "x", "a\x1b]0;x\x07\x00\ud800", [], ["x"], {}, {"a": 1}]

SUMMARY = {
    "hit_rate": 0.9, "hit_rate_low": 0.8, "hit_rate_high": 0.95, "n_met": 9, "n_accepted": 10,
    "n_refused": 1, "refused_rightly_share": 1.0, "given_share": 0.5, "n_shortened": 2,
    "whole_sentence_share": 0.7, "worst_overrun_s": 0.1, "worst_overrun_share": 0.02,
    "first_s": {"p50": 0.1, "p99": 0.2}, "total_s": {"p50": 1.0, "p99": 2.0},
    "adjustments": {"length": 2},
}  # fmt: skip


def clean() -> list[list[dict[str, Any]]]:
    """A run of each kind: a language model's, a network's, a workload's."""
    language = records(some_runs(repeats=2))
    for record in language:
        record["states"] = {"before": {"temp_c": 40.0, "throttled": 0}, "after": {"load_1min": 1.0}}
        record["quality"] = {"texts": [{"kld_mean": 0.1, "kld_mean_stderr": 0.01}]}
    network, workload = copy.deepcopy(language[0]), copy.deepcopy(language[4])
    network["test"] |= {"kind": "inference", "label": "inference"}
    network["metrics"] = {
        name: {"n": 5, "median": 0.01, "p10": 0.009, "p90": 0.02}
        for name in ("latency_s", "latency_p50_s", "latency_p95_s", "latency_p99_s", "load_s")
    }
    network["figures"] = [{"latency_s": 0.01}] * 5
    workload["test"] |= {"kind": "deadline", "label": "questions"}
    workload["deadline"] = {
        "summary": SUMMARY, "by_task": {"a": SUMMARY, "b": SUMMARY}, "notes": ["one"],
    }  # fmt: skip
    for part in (network, workload):
        part |= {"run_id": part["test"]["kind"], "part": {"index": 0, "of": 1}}
    return [language[2:3] + language[4:], [network], [workload]]


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every entry below `value`; of a list the last one."""
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[-1:]
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, (dict, list)):
            yield from paths(inner, (*at, key))


def write(folder: Path, run: list[dict[str, Any]]) -> Path:
    path = folder / "r.jsonl"
    lines = [json.dumps(sealed({"kind": KIND, "schema": SCHEMA, **record})) for record in run]
    path.write_text("\n".join(lines) + "\n")
    return path


def show(path: Path) -> None:
    """Read a file and show it in every way that draws nothing."""
    found = read_any(path).results
    for kind in ("md", "json", "csv", "llama-bench"):
        render_report(found, kind)  # type: ignore[arg-type]
    for run in group_runs(found.records):
        for line in run_lines(run):
            assert "\x1b" not in line, line
        verify_run(run)
        key_figures(run)
        find_kind(run).charts(run, 1.0)
    fleet_lines(group_runs(found.records))
    fleet_data(group_runs(found.records))
    read_sides([path])


def test_clean_runs_of_every_kind_are_shown(tmp_path: Path) -> None:
    for run in clean():
        show(write(tmp_path, run))


REMOVED = object()


def with_value(holder: Any, at: tuple[Any, ...], value: object) -> Any:
    """The same with another value of one entry, or without it; what lies beside is shared."""
    copied = copy.copy(holder)
    if len(at) > 1:
        copied[at[0]] = with_value(holder[at[0]], at[1:], value)
    elif value is REMOVED:
        del copied[at[0]]
    else:
        copied[at[0]] = value
    return copied


@pytest.mark.parametrize("kind", range(3))
def test_any_one_entry_may_be_anything(tmp_path: Path, kind: int) -> None:
    run = clean()[kind]
    chance, faults = random.Random(kind), []
    for at in paths(run[0]):
        for value in (*chance.sample(ODD, 3), REMOVED):
            path = write(tmp_path, [with_value(run[0], at, value), *run[1:]])
            try:
                show(path)
            except EdgeError as error:
                assert str(error).isprintable(), error
            except Exception as error:
                faults.append(f"{'.'.join(map(str, at))} = {value!r:.40}: {error!r:.120}")
            # To write over a file waits for the disk, where ext4 keeps it whole.
            path.unlink()
    assert not faults, "\n".join(faults)


def steer(value: Any) -> Any:
    """The same with a steering text in place of every text that is no key word."""
    if isinstance(value, dict):
        return {k: v if k in ("kind", "run_id", "time") else steer(v) for k, v in value.items()}
    if isinstance(value, list):
        return [steer(inner) for inner in value]
    return f"{value}\x1b]0;x\x07\x00\ud800\uffff<b>&" if isinstance(value, str) else value


@pytest.mark.parametrize("kind", range(3))
def test_control_characters_spoil_no_page(tmp_path: Path, kind: int) -> None:
    found = read_any(write(tmp_path, [steer(record) for record in clean()[kind]])).results
    page = render_report(found, "html", 1.0).decode()
    assert "\x1b" not in page and "\x00" not in page and "\x07" not in page
    for svg in page.split("<svg")[1:]:
        ElementTree.fromstring(f"<svg{svg.partition('</svg>')[0]}</svg>")
    assert render_report(found, "png").startswith(b"\x89PNG")
    assert "\x1b" not in render_report(found, "md").decode()


@pytest.mark.parametrize("value", [10**400, math.inf, "5", True])
def test_a_figure_that_is_none_is_named(tmp_path: Path, value: object) -> None:
    run = clean()[0]
    run[0]["metrics"]["prefill_tps"]["median"] = value
    path = tmp_path / "r.jsonl"
    head = {"kind": KIND, "schema": SCHEMA}
    path.write_text("".join(json.dumps({**head, **record}) + "\n" for record in (*run, *run)))
    with pytest.raises(InputError, match=r"prefill_tps|not JSON"):
        read_any(path)
