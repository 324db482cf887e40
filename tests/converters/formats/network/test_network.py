"""Any other network: inputs by rule, latency into the result store, weights in 8 and 4 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.formats.network.quantize import quantize_network
from boardfit.edge.bench.command import bench
from boardfit.edge.bench.network import is_network
from boardfit.edge.bench.network_inputs import InputSpec, make_values, parse_shapes, resolve_shapes
from boardfit.edge.bench.network_runtime import open_network
from boardfit.edge.bench.store import read_results
from boardfit.edge.errors import EngineError, InputError, UnsupportedModelError, UsageError
from boardfit.edge.report.markdown import render
from tests.edge.files.wire import model, text, value_info

builds = [pytest.mark.slow, pytest.mark.engine, pytest.mark.xdist_group("onnx-builder")]


# ---- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("batch", 3, "height", "width"), (1, 3, 224, 224)),
        ((None, 3, None, None), (1, 3, 224, 224)),
        (("batch_size", "sequence_length"), (1, 128)),
        (("N", "frames", 80), (1, 128, 80)),
        ((None, None, None, 3), (1, 224, 224, 3)),
        ((), ()),
    ],
)
def test_open_dimensions_by_rule(
    shape: tuple[int | str | None, ...], expected: tuple[int, ...]
) -> None:
    assert resolve_shapes([InputSpec("x", "float32", shape)], {})["x"] == expected


def test_given_shapes_must_suit_the_file() -> None:
    specs = [InputSpec("image", "float32", ("n", 3, None, None))]
    given_shape = parse_shapes(["image=1x3x64x32"])
    assert resolve_shapes(specs, given_shape)["image"] == (1, 3, 64, 32)
    for bad in ("image=1x4x64x64", "image=1x3x64", "imgae=1x3x64x64"):
        with pytest.raises(UsageError):
            resolve_shapes(specs, parse_shapes([bad]))
    for option in ("image", "image=", "=1x2", "image=1xx2", "image=-1x2"):
        with pytest.raises(UsageError, match="expected NAME"):
            parse_shapes([option])
    with pytest.raises(UnsupportedModelError, match="at most"):
        resolve_shapes(specs, parse_shapes(["image=999999x3x999x999"]))


@given(
    st.sampled_from(["float32", "float16", "int64", "int32", "uint8", "int8", "bool"]),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(["x", "input_ids", "attention_mask", "x_lens"]),
)
def test_values_are_safe_and_always_the_same(kind: str, shape: list[int], name: str) -> None:
    spec = InputSpec(name, kind, tuple(shape))
    first, again = (make_values([spec], {name: tuple(shape)})[name] for _ in range(2))
    assert first.shape == tuple(shape) and str(first.dtype) == kind
    assert np.array_equal(first, again)
    if kind in ("int64", "int32"):
        assert ((first == 0) | (first == 1)).all()
    if kind.startswith("float"):
        assert ((first >= 0) & (first <= 1)).all()


def test_text_inputs_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="string"):
        make_values([InputSpec("x", "string", (1,))], {"x": (1,)})


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.engine
def test_an_operator_that_the_runtime_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "swirl.onnx"
    swirl = _node_with_ports("Swirl", "x", "y", "com.example")
    path.write_bytes(model(value_info(11, "x", 1, [1]), swirl, value_info(12, "y", 1, [1])))
    with pytest.raises((UnsupportedModelError, EngineError), match=r"Swirl.*|com\.example.*") as e:
        open_network(path, 1)
    assert "onnxruntime 1." in str(e.value) or "onnxruntime" in str(e.value)


def _node_with_ports(op: str, source: str, target: str, domain: str) -> bytes:
    return text(1, text(1, source) + text(2, target) + text(4, op) + text(7, domain))


def test_other_files_are_no_networks(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"<html>not found</html>")
    assert is_network(path)
    with pytest.raises(InputError, match="web page"):
        open_network(path, 1)
    (tmp_path / "genai_config.json").write_text("{}")
    assert not is_network(path), "with that beside it, it is a language model"


# ---- bench --------------------------------------------------------------------------------------


class TestWithNetworks:
    pytestmark = builds

    def test_bench_stores_what_a_report_shows(self, networks: Path, tmp_path: Path) -> None:
        results = tmp_path / "r.jsonl"
        options = ["--quick", "--threads", "1", "-o", str(results)]
        done = CliRunner().invoke(bench, [str(networks / "picture.onnx"), *options])
        assert done.exit_code == 0, done.output
        speech = [str(networks / "speech.onnx"), "--shape", "features=1x50x40", *options]
        assert CliRunner().invoke(bench, speech).exit_code == 0
        records = read_results([results]).records
        assert [r["test"]["kind"] for r in records] == ["inference", "inference"]
        latency = records[0]["metrics"]["latency_s"]
        assert latency["n"] == 20 and 0 < latency["minimum"] <= latency["median"]
        slow = records[1]["metrics"]
        assert slow["latency_p99_s"]["median"] >= slow["latency_p50_s"]["median"] > 0
        details = records[1]["engine"]["details"]
        assert details["inputs"]["features"]["shape"] == [1, 50, 40]
        assert details["operators"]["LSTM"] == 1
        assert details["providers"] == ["CPUExecutionProvider"]
        assert "--shape" in records[1]["repeat"]
        page = render(list(records))
        assert "per inference" in page and "inference 1x50x40" in page and "p99" in page

    @pytest.mark.parametrize(("recipe", "limit"), [("int8", 0.03), ("int4", 0.2)])
    def test_quantized_networks_answer_alike(
        self, networks: Path, tmp_path: Path, recipe: str, limit: float
    ) -> None:
        report = quantize_network(networks / "picture.onnx", tmp_path / "q", recipe, threads=1)
        assert report.ratio < (0.36 if recipe == "int8" else 0.28)
        assert report.worst_relative_rms is not None and 0 < report.worst_relative_rms < limit
        assert sum(report.types.values()) == 16 * 32 * 9 + 32 * 16 * 64
        data = np.load(networks / "squares.npz")
        network = open_network(report.path, 1)
        network.prepare({"image": data["pictures"]})
        network.run()
        right = (network.outputs()[0].argmax(1) == data["quarters"]).mean()
        network.close()
        assert right > 0.97

    def test_recurrent_weights_are_stored_too(self, networks: Path, tmp_path: Path) -> None:
        report = quantize_network(networks / "speech.onnx", tmp_path / "q", "int8", threads=1)
        assert report.types["int8_channel"] == 2 * 4 * 48 * (40 + 48)
        assert report.ratio < 0.4 and (report.worst_relative_rms or 1) < 0.03
        with pytest.raises(UnsupportedModelError, match="already"):
            quantize_network(report.path, tmp_path / "again", "int4")
        assert json.dumps(dict(report.errors))

    def test_unknown_recipe(self, networks: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="int8"):
            quantize_network(networks / "picture.onnx", tmp_path / "q", "int88")
