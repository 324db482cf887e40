"""`edge race`: the verdict's arithmetic, who may race, and a race of two bundles to the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.build.command import build_command
from boardfit.converters.build.race_command import race_command
from boardfit.edge.bench.store import read_results
from boardfit.edge.bundle.bundle import open_bundle, seal_bundle
from boardfit.edge.errors import EngineError, IntegrityError, UsageError
from boardfit.edge.race.command import parse_threads, race_tests
from boardfit.edge.race.turns import ask, make_entrants
from boardfit.edge.race.verdict import EntrantPace, find_leads, interpolate, sentence

# ---- arithmetic ---------------------------------------------------------------------------------

fast_prefill = EntrantPace("litert b32, 2 threads", {16: 0.2, 512: 0.6}, {0: 50.0})
fast_decode = EntrantPace("llama_cpp q4_0, 2 threads", {16: 0.05, 512: 1.6}, {0: 52.0})


def test_the_crossover_is_where_both_take_as_long() -> None:
    short, long = find_leads([fast_prefill, fast_decode], 512)
    assert (short.label, short.first) == (fast_decode.label, 1)
    assert (long.label, long.last) == (fast_prefill.label, 512)
    gap = [
        abs(fast_prefill.seconds(n) - fast_decode.seconds(n)) for n in (short.last, short.last + 1)
    ]
    assert max(gap) < 0.004, "at the border neither is ahead"
    assert sentence([short, long]) == (
        f"prompts over {short.last} tokens: litert b32, 2 threads; "
        "shorter: llama_cpp q4_0, 2 threads"
    )


def test_an_advantage_within_the_noise_moves_no_lead() -> None:
    near = EntrantPace("onnx int4, 2 threads", {16: 0.2, 512: 0.595}, {0: 50.0})
    assert len(find_leads([fast_prefill, near], 512)) == 1


def test_a_lone_entrant_wins_without_boasting() -> None:
    (lead,) = find_leads([fast_decode], 128)
    assert lead.ratio == 1 and "as fast as" not in sentence([lead])


def test_the_ratio_is_against_other_bundles_not_other_thread_counts() -> None:
    slow_self = EntrantPace("llama_cpp q4_0, 1 thread", {16: 9.0}, {0: 1.0})
    (first, *_) = find_leads([fast_decode, slow_self, fast_prefill], 64)
    assert first.ratio == pytest.approx(
        fast_prefill.seconds(first.last // 2) / fast_decode.seconds(first.last // 2), rel=0.05
    )


def test_a_longer_prompt_is_not_predicted_to_take_less_than_none() -> None:
    """Two measurements in noise may fall; the line through them would soon be below zero."""
    noisy = EntrantPace("a", {1: 1.0, 2: 0.001}, {0: 0.1})
    assert noisy.seconds(300) > 0.001
    assert len(find_leads([noisy, EntrantPace("b", {1: 1.0}, {0: 0.1})], 300)) >= 1


def test_nobody_to_win_is_an_error() -> None:
    with pytest.raises(ValueError, match="no bundle finished"):
        find_leads([], 10)


points = st.dictionaries(st.integers(1, 2048), st.floats(0.001, 100), min_size=1, max_size=6)
paces = st.builds(
    EntrantPace, st.text("abc", min_size=1, max_size=3), points, st.dictionaries(
        st.integers(0, 2048), st.floats(0.1, 5000), min_size=1, max_size=4
    ),
)  # fmt: skip


@given(st.lists(paces, min_size=1, max_size=4), st.integers(1, 300))
def test_leads_cover_every_length_once_and_lead_by_no_less_than_the_margin(
    found: list[EntrantPace], longest: int
) -> None:
    ranges = find_leads(found, longest)
    assert [r.first for r in ranges] == [1, *(r.last + 1 for r in ranges[:-1])]
    assert ranges[-1].last == longest
    by_label = {pace.label: pace for pace in found}
    if len(by_label) == len(found):
        for lead in ranges:
            best = min(pace.seconds(lead.last) for pace in found)
            assert by_label[lead.label].seconds(lead.last) <= best * 1.03 + 1e-9


@given(points, st.integers(0, 4096))
def test_interpolation_passes_through_its_points(known: dict[int, float], x: int) -> None:
    for at, value in known.items():
        assert interpolate(known, at) == pytest.approx(value)
        assert interpolate(known, at, flat=True) == pytest.approx(value)
    assert min(known.values()) * 0.999 <= interpolate(known, x, flat=True)
    assert interpolate(known, x, flat=True) <= max(known.values()) * 1.001


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-1", "1.5"])
def test_thread_counts_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="1,2,4"):
        parse_threads(text)


def test_tests_fit_the_context() -> None:
    assert [t.label for t in race_tests(600)] == [
        "prefill 16", "prefill 128", "prefill 512", "decode 32 at depth 0", "decode 32 at depth 512"
    ]  # fmt: skip
    with pytest.raises(UsageError, match="too short"):
        race_tests(16)


# ---- bundles ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("race")
    for recipe in ("q4_0", "q8_0"):
        words = ["sample", "-d", "raspberry-pi-5-8gb", "-o", str(folder / recipe), "--threads", "1"]
        CliRunner().invoke(
            build_command, [*words, "--recipe", recipe, "--no-quality"], catch_exceptions=False
        )
    return {recipe: folder / recipe for recipe in ("q4_0", "q8_0")}


def race(*arguments: str | Path) -> str:
    words = [*map(str, arguments), "--quick", "--rounds", "1", "--threads", "1"]
    result = CliRunner().invoke(race_command, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.engine
@pytest.mark.xdist_group("race")
def test_a_race_ends_in_a_verdict_and_stored_results(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "results.jsonl"
    found = json.loads(race(*bundles.values(), "--json", "-o", output))
    assert {e["recipe"] for e in found["entrants"]} == {"q4_0", "q8_0"}
    for entrant in found["entrants"]:
        assert entrant["load_s"] > 0 and entrant["peak_anon_bytes"] > 10**6
        assert all(
            figures[f"{label.split()[0]}_tps"]["median"] > 0
            for label, figures in entrant["tests"].items()
        )
    assert found["agreement"][0]["share"] > 0.8, "two copies of one model"
    assert "llama_cpp" in found["verdict"] and found["leads"][-1]["last"] == 128
    stored = read_results([output]).records
    assert {r["settings"]["recipe"] for r in stored} == {"q4_0", "q8_0"}
    assert {r["race"] for r in stored} == {found["verdict"]}
    assert len({r["run_id"] for r in stored}) == 2
    last = max(stored, key=lambda r: str(r["time"]))
    best = min(found["entrants"], key=lambda e: -e["tests"]["prefill 128"]["prefill_tps"]["median"])
    assert last["settings"]["n_threads"] == 1 and best, "the newest run is the best entrant's"


@pytest.mark.engine
@pytest.mark.xdist_group("race")
def test_bundles_of_different_models_do_not_race(bundles: dict[str, Path], tmp_path: Path) -> None:
    other = resealed(bundles["q8_0"], tmp_path / "other", fingerprint="0" * 64)
    with pytest.raises(UsageError, match="different models"):
        make_entrants([open_bundle(bundles["q4_0"]), open_bundle(other)])
    with pytest.raises(UsageError, match="named twice"):
        make_entrants([open_bundle(bundles["q4_0"])] * 2)
    with pytest.raises(UsageError, match="999 threads"):
        make_entrants([open_bundle(bundles["q4_0"])], [999])


@pytest.mark.engine
@pytest.mark.xdist_group("race")
def test_a_copy_that_answers_otherwise_is_found_out(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """A bundle with most of its weights overwritten, sealed again: whole, and wrong."""
    broken = tmp_path / "broken"
    shutil.copytree(bundles["q8_0"], broken)
    data = bytearray((broken / "model.gguf").read_bytes())
    start = len(data) // 4
    data[start:] = bytes(len(data) - start)
    (broken / "model.gguf").write_bytes(data)
    resealed(broken, broken)
    with pytest.raises(IntegrityError, match="choose the same token") as caught:
        race(bundles["q4_0"], broken)
    assert "--any-answers" in (caught.value.next_step or "")
    assert "llama_cpp" in race(bundles["q4_0"], broken, "--any-answers")


@pytest.mark.engine
@pytest.mark.xdist_group("race")
def test_an_engine_that_fails_says_what_it_said(bundles: dict[str, Path], tmp_path: Path) -> None:
    (entrant,) = make_entrants([open_bundle(bundles["q4_0"])], [1])
    with pytest.raises(EngineError, match=r"ended with code 1: .*KeyError"):
        ask(entrant, 128, {"task": "follow"})
    with pytest.raises(UsageError, match="context of 9999"):
        ask(entrant, 9999, {"task": "answer", "n_gen": 1})


@pytest.mark.engine
@pytest.mark.xdist_group("race")
def test_only_this_machine_races(bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="cannot race here") as caught:
        race("sample", "--device", "raspberry-pi-5-8gb")
    assert "edge flash" in (caught.value.next_step or "")
    with pytest.raises(UsageError, match="bundles, or one MODEL"):
        race("sample", bundles["q4_0"])


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.xdist_group("race")
def test_a_model_is_built_once_and_raced() -> None:
    words = ("sample", "--format", "gguf", "--no-quality", "--json")
    first = json.loads(race(*words))["entrants"][0]
    assert first["recipe"] == "q4_0"
    again = json.loads(race(*words))["entrants"][0]
    assert again["bundle"] == first["bundle"], "kept in the cache"


def resealed(source: Path, target: Path, fingerprint: str | None = None) -> Path:
    """The bundle with new hashes, and possibly another source."""
    if target != source:
        shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    roles = {name: entry["role"] for name, entry in manifest.pop("files").items()}
    if fingerprint:
        manifest["model"]["source"]["fingerprint"] = fingerprint
    for name in ("manifest.json", "SHA256SUMS"):
        (target / name).unlink()
    seal_bundle(
        target, {k: v for k, v in manifest.items() if k not in ("kind", "schema")}, roles, {}
    )
    return target
