"""Power from what boards print, and joules from power."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.edge.bench.heat import METHODS, find_meter
from boardfit.edge.bench.metrics import measure
from boardfit.edge.bench.store import append_results, read_results
from boardfit.edge.bench.trace_rows import compact_trace, expand_trace
from boardfit.edge.bench.workloads import Test as BenchTest
from boardfit.edge.probe.system import CapturedSystem
from boardfit.edge.report.command import report
from boardfit.edge.report.figures import group_runs
from boardfit.edge.report.verify import verify_run
from boardfit.edge.types import HeatSample, Trace
from tests.edge.report.stored import PI5, records, request, run_of

PMIC = Path(__file__).parents[1] / "probe/fixtures/pmic-raspberry-pi-5.txt"
SECOND = 10**9

BATTERY = {
    "/sys/class/power_supply/battery/type": "Battery\n",
    "/sys/class/power_supply/battery/status": "Discharging\n",
    "/sys/class/power_supply/battery/current_now": "-612000\n",
    "/sys/class/power_supply/battery/voltage_now": "4051000\n",
    "/sys/class/power_supply/usb/type": "USB\n",
}
INA3221 = {
    "/sys/class/hwmon/hwmon1/name": "ina3221\n",
    "/sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "/sys/class/hwmon/hwmon1/in1_input": "5040\n",
    "/sys/class/hwmon/hwmon1/curr1_input": "1488\n",
    "/sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "/sys/class/hwmon/hwmon1/in2_input": "5040\n",
    "/sys/class/hwmon/hwmon1/curr2_input": "600\n",
}


def test_a_pi_5_by_its_rails() -> None:
    meter = find_meter(CapturedSystem({}, {"pmic": PMIC.read_text()}))
    assert meter is not None and meter.kind == "pmic"
    watts = meter.read()
    assert watts is not None and 5 < watts < 20  # four busy cores


def test_a_jetson_by_its_input_rail_alone() -> None:
    meter = find_meter(CapturedSystem(INA3221))
    assert meter is not None and meter.kind == "ina3221"
    assert meter.read() == pytest.approx(5.04 * 1.488)


def test_a_phone_by_its_battery_and_not_while_it_charges() -> None:
    meter = find_meter(CapturedSystem(BATTERY))
    assert meter is not None and meter.kind == "battery"
    assert meter.read() == pytest.approx(0.612 * 4.051)
    charging = {**BATTERY, "/sys/class/power_supply/battery/status": "Charging\n"}
    assert find_meter(CapturedSystem(charging)) is None


def test_an_energy_counter_needs_two_looks_and_may_wrap() -> None:
    zone = "/sys/class/powercap/intel-rapl:0"
    files = {f"{zone}/name": "package-0\n", f"{zone}/energy_uj": "1000000\n"}
    times = iter([0.0, 2.0, 3.0])
    system = CapturedSystem(files)
    meter = find_meter(system, clock=lambda: next(times))
    assert meter is not None and meter.kind == "rapl" and meter.read() is None
    system._files[f"{zone}/energy_uj"] = "31000000\n"
    assert meter.read() == pytest.approx(15.0)
    system._files[f"{zone}/energy_uj"] = "5\n"
    assert meter.read() is None


def test_no_sensor_is_none() -> None:
    assert find_meter(CapturedSystem({})) is None


def powered(watts: list[float | None]) -> Trace:
    base = request(0, n_prompt=1, prefill_ms=1, n_out=41, step_ms=100)
    heat = tuple(HeatSample(i * SECOND, 50.0, 2e9, 0, w) for i, w in enumerate(watts))
    return Trace(**{**base.__dict__, "heat": heat})


def test_joules_per_token() -> None:
    found = measure(powered([4.0, 6.0, 5.0, None]))
    assert found["power_w"] == pytest.approx(5.0)
    assert found["j_per_token"] == pytest.approx(5.0 * found["end_to_end_s"] / 41)
    short = measure(powered([4.0, 6.0, None]))
    assert short["power_w"] is None and short["j_per_token"] is None


def test_energy_is_stored_verified_and_shown_with_its_method(tmp_path: Path) -> None:
    trace = powered([4.0, 6.0, 5.0, 5.0])
    assert measure(expand_trace(compact_trace(trace))) == measure(trace)
    made = records(
        [run_of(BenchTest("decode", 0, 0, 40), [trace, trace])],
        machine={**PI5, "power_sensor": "pmic"},
    )
    path = tmp_path / "r.jsonl"
    append_results(path, made)
    assert not verify_run(group_runs(read_results([path]).records)[0]).problems
    out = tmp_path / "r.html"
    CliRunner().invoke(report, [str(path), "-o", str(out)], catch_exceptions=False)
    for text in (html.unescape(out.read_text()), CliRunner().invoke(report, [str(path)]).output):
        assert "5.00 (5.00–5.00) W" in text and METHODS["pmic"][:20] in text
