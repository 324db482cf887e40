"""Write the conversations that ship with the sample model, as `converters/sample/examples.py` reads
them.

    PYTHONPATH=scripts python -m lab.sample.freeze

Quality cards and calibrated files depend on every letter: give a changed text a new name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping

from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.sample.examples import ExampleSet
from lab.sample import results, task
from lab.sample.generator import any_sample, conversation

Texts = list[str]

# The dev split is for decisions: training, calibration and the final score never see this seed.
_QUALITY_SEED, _QUALITY_CONVERSATIONS, _QUALITY_TURNS = 7700, 40, 4
# An even part of the dev split.
_N_TASK = 120
# Quality cards never read these: theirs have another seed and split.
_CALIBRATION_SEED, _CALIBRATION_CONVERSATIONS = 41, 160


def make_quality() -> Iterator[Texts]:
    rng = random.Random(_QUALITY_SEED)
    for _ in range(_QUALITY_CONVERSATIONS):
        turns = [any_sample("dev", rng) for _ in range(_QUALITY_TURNS)]
        yield [text for turn in turns for text in (turn.text, turn.answer)]


def make_task() -> Iterator[Texts]:
    for example in task.dev(_N_TASK):
        yield [*(message["content"] for message in example.messages), example.expected]


def make_calibration() -> Iterator[Texts]:
    rng = random.Random(_CALIBRATION_SEED)
    for _ in range(_CALIBRATION_CONVERSATIONS):
        yield [message["content"] for message in conversation(rng, rng.randint(2, 5))]


MAKERS: Mapping[ExampleSet, Callable[[], Iterator[Texts]]] = {
    "calibration": make_calibration,
    "quality": make_quality,
    "task": make_task,
}


def make_file(name: ExampleSet) -> str:
    """Make the content of a set's file."""
    return "".join(json.dumps(texts, ensure_ascii=False) + "\n" for texts in MAKERS[name]())


def main() -> None:
    for name in MAKERS:
        results.write_text(MODEL_DIR.parent / f"{name}.jsonl", make_file(name))


if __name__ == "__main__":
    main()
