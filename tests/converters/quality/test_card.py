"""Quality cards on the embedded model: measured through the engine, kept, bounded, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boardfit.converters.formats.gguf.recipe import list_recipes, load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.quality import card as card_module
from boardfit.converters.quality.building import QualityOptions, measure_cards
from boardfit.converters.quality.card import (
    check_bounds,
    find_bound,
    make_empty_card,
    measure_card,
)
from boardfit.converters.quality.reference import (
    QualityReference,
    cache_key,
    count_vocab,
    n_tokens_wanted,
    read_references,
)
from boardfit.converters.quality.texts import (
    DEFAULT_TEXT,
    default_text,
    read_text,
    sample_text,
    texts_for,
)
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.sample.examples import read_conversations
from boardfit.converters.source.resolve import open_model
from boardfit.converters.spec import KeyValue, ModelSpec
from boardfit.edge.bundle.quality_text import quality_lines
from boardfit.edge.engines import EngineSettings
from boardfit.edge.errors import InputError, IntegrityError, UsageError
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.types import Plan

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("quality")]

ONE_THREAD = EngineSettings(n_threads=1)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return open_model("sample")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quality")


@pytest.fixture(scope="module")
def references(spec: ModelSpec, folder: Path) -> list[QualityReference]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOARDFIT_CACHE", str(folder / "cache"))
        return read_references(spec, texts_for(spec), 256, folder / "work", threads=1)


class Stages(Reporter):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, text: str) -> None:
        self.seen.append(text)


@pytest.fixture(scope="module")
def files(spec: ModelSpec, folder: Path) -> dict[str, Path]:
    made = {r: folder / f"{r}.gguf" for r in ("f16", "q4_0")}
    for recipe, path in made.items():
        write_gguf(spec, load_recipe(recipe), path)
    return made


def measured(path: Path, recipe: str, references: list[QualityReference], **options: bool):
    return measure_card(path, "llama_cpp", ONE_THREAD, recipe, references, **options)


def test_half_precision_is_nearly_the_source_and_four_bits_are_further(
    files: dict[str, Path], references: list[QualityReference]
) -> None:
    half, four = (measured(files[r], r, references) for r in ("f16", "q4_0"))
    for card in (half, four):
        own, prose = card["texts"]
        assert own["name"] == "boardfit-sample-conversations-1" and prose["name"] == DEFAULT_TEXT
        assert card["within_bounds"] and card["reference"]["kind"] == "source checkpoint"
        assert prose["n_scored"] == prose["n_tokens"] // 256 * 127
    assert half["texts"][0]["kld_mean"] < 1e-5 < 1e-4 < four["texts"][0]["kld_mean"]
    assert half["texts"][1]["kld_mean"] < 1e-4 < four["texts"][1]["kld_mean"]
    assert half["texts"][0]["ppl"] < 1.1, "answers of its own world are no surprise to it"


def test_the_same_file_gives_the_same_card(
    files: dict[str, Path], references: list[QualityReference]
) -> None:
    first, second = (measured(files["q4_0"], "q4_0", references) for _ in range(2))
    assert first == second


def test_the_sample_is_asked_its_task(
    files: dict[str, Path], references: list[QualityReference], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = read_conversations("task")[::4]
    monkeypatch.setattr(card_module, "read_conversations", lambda name: some)
    task = measured(files["f16"], "f16", references, is_sample=True)["task"]
    assert task["n_asked"] == 30 and task["exact"] > 0.85


def test_a_reference_is_computed_once_and_a_damaged_one_again(
    spec: ModelSpec,
    folder: Path,
    references: list[QualityReference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BOARDFIT_CACHE", str(folder / "cache"))
    stages = Stages()
    again = read_references(spec, texts_for(spec), 256, folder / "work", reporter=stages)
    assert not stages.seen, "nothing was computed"
    assert all(
        np.array_equal(a.log_probs, b.log_probs) for a, b in zip(again, references, strict=True)
    )
    key = cache_key(spec, texts_for(spec)[0], 256)
    damaged = folder / "cache" / "quality" / f"{key}.npy"
    start = damaged.read_bytes()[:1000]
    damaged.unlink()  # the old file stays mapped by the fixture
    damaged.write_bytes(start)
    mended = read_references(
        spec, texts_for(spec)[:1], 256, folder / "work", threads=1, reporter=stages
    )
    assert stages.seen and np.array_equal(mended[0].log_probs, references[0].log_probs)
    assert not list((folder / "work").glob("*.gguf")), "the F32 file is removed"


def test_a_gguf_source_is_its_own_reference(
    files: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_CACHE", str(folder / "cache"))
    source = open_model(files["q4_0"])
    (reference,) = read_references(source, texts_for(source), 256, folder / "work", threads=1)
    assert reference.about["kind"] == "source GGUF" and "Q4_0" in reference.about["type"]
    # What is left is the cache: F32 where the reference is computed, F16 as usual.
    assert measured(files["q4_0"], "q4_0", [reference])["texts"][0]["kld_mean"] < 1e-3


def test_beyond_its_bound_an_artifact_is_refused_unless_accepted(
    files: dict[str, Path], references: list[QualityReference]
) -> None:
    # Four bits against the bound of sixteen, on prose that the sample does not know.
    card = measured(files["q4_0"], "f16", references[1:])
    assert card["within_bounds"] is False
    with pytest.raises(IntegrityError, match=r"nats per token .* at most 0\.003") as caught:
        check_bounds(card, "f16")
    assert "--accept-quality" in (caught.value.next_step or "")
    check_bounds(card, "f16", accept=True)
    assert "accepted" in quality_lines({"quality": card})[0]


def test_every_recipe_has_a_bound_wider_than_what_is_published() -> None:
    assert {recipe.id for recipe in list_recipes()} <= card_module._all_bounds().keys()
    for recipe, figures in card_module._all_bounds().items():
        assert figures.keys() <= {"kld_mean", "published"}, recipe
        assert find_bound(recipe) == figures["kld_mean"] > 2 * figures.get("published", 0), recipe


def test_padding_tokens_do_not_count(spec: ModelSpec) -> None:
    def padded(entry: KeyValue) -> KeyValue:
        if entry.key == "tokenizer.ggml.tokens":
            return replace(entry, value=[*entry.value, "[PAD2048]", "[PAD2049]"])
        if entry.key == "tokenizer.ggml.token_type":
            return replace(entry, value=[*entry.value, 5, 5])
        return entry

    assert count_vocab(spec) == 2048
    assert count_vocab(replace(spec, metadata=tuple(map(padded, spec.metadata)))) == 2048


def test_a_large_model_reads_less(spec: ModelSpec) -> None:
    class Shape:
        def __init__(self, n_params: int) -> None:
            self.n_params = n_params

    wanted = [
        n_tokens_wanted(replace(spec, shape=Shape(n)))  # type: ignore[arg-type]
        for n in (1, 10**9, 2 * 10**9, 10**12)
    ]
    assert wanted == [4096, 4000, 2000, 1024]


def test_texts_that_cannot_be_read(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_text(tmp_path / "missing.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_text(tmp_path / "binary")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(UsageError, match="empty"):
        read_text(tmp_path / "empty")
    (tmp_path / "short").write_text("Too short to say anything.")
    with pytest.raises(UsageError, match="at least 256 are needed"):
        read_references(spec, [read_text(tmp_path / "short")], 256, tmp_path, threads=1)


def test_the_texts_are_the_same_on_every_machine() -> None:
    """A change of a text makes old and new cards incomparable: give it a new name then."""
    assert default_text().sha256 == (
        "aedaa4400257d894edcea17c054a534352113364862e9553812354622b5b8f6a"
    )
    assert sample_text().sha256 == SAMPLE_SHA256


SAMPLE_SHA256 = "400d6b4eb4a9671d847b28f6faffbf91466d0347f4a5e0d537072d41bdfc308d"


def test_the_sample_text_is_not_trained_on() -> None:
    from lab.sample.task import held_out

    asked = {m.content.lower() for talk in sample_text().conversations for m in talk[::2]}
    held = {e.messages[-1]["content"].lower() for e in held_out()}
    assert not asked & held, "the final score's requests stay unseen here"


def test_what_was_not_measured_says_why(spec: ModelSpec, tmp_path: Path) -> None:
    plan = plan_for("llama_cpp", "q4_0")
    cards = measure_cards(
        spec, [plan], {("llama_cpp", "q4_0"): tmp_path}, QualityOptions(enabled=False), tmp_path,
        threads=1, reporter=Reporter(),
    )  # fmt: skip
    (card,) = cards.values()
    assert quality_lines({"quality": card}) == ["not measured: left out with --no-quality"]
    check_bounds(card, "q4_0")


def plan_for(engine: str, recipe: str) -> Plan:
    return Plan(
        engine=engine, recipe=recipe, device="raspberry-pi-5-8gb", n_ctx=512, kv_type="f16",
        n_threads=1, n_batch=64, n_ubatch=64, use_mmap=True, repack=False, artifact_bytes=1,
        memory={}, budget_bytes=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    "card", [None, 3, [], {}, {"texts": 5}, {"texts": [5]}, {"texts": [{"kld_mean": "x"}]}]
)
def test_a_card_that_is_none_is_shown_as_none(card: object) -> None:
    assert quality_lines({"quality": card}) == ["not measured: the bundle has no quality card"]


def test_a_hostile_card_prints_no_control_characters() -> None:
    card = make_empty_card("\x1b[2Jgone") | {}
    assert "\x1b" not in quality_lines({"quality": card})[0]


def test_a_card_is_json(files: dict[str, Path], references: list[QualityReference]) -> None:
    assert str(MODEL_DIR) not in json.dumps(measured(files["f16"], "f16", references))
