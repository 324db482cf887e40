"""Runs the engine `tflite` on tflite-runtime, in an environment of its own (numpy 1, Python 3.11 at
most), and prints what it saw as one line of JSON. Arguments: random, scripted, heavy, composite.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from boardfit.edge.engines import EngineSettings
from boardfit.edge.engines.litert.engine import TfliteEngine
from boardfit.edge.engines.model_file import model_file
from boardfit.edge.errors import EdgeError
from boardfit.edge.types import GenerationConfig, Message

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind."
BOS = 259


def opened(path: str, **changes: object) -> TfliteEngine:
    settings = EngineSettings(n_threads=1).replace(**changes)
    return TfliteEngine.open(model_file(Path(path)), settings, package="tflite_runtime")


def said(engine: TfliteEngine, prompt: list[int], n: int) -> list[int | None]:
    config = GenerationConfig(max_tokens=n, ignore_eos=True)
    return [event.token_id for event in engine.stream(prompt, config)]


def main() -> None:
    random, scripted, heavy, composite = sys.argv[1:]
    seen: dict[str, object] = {}

    engine = opened(random)
    info = engine.describe()
    seen["build"], seen["inside"] = info.build, info.details["aborts_inside_a_step"]
    prompt = [BOS, *engine.tokenize(TEXT)]
    seen["prompt"] = prompt
    seen["logits"] = engine.logits(prompt).tolist()
    answers, reused = [], []
    other = [*prompt[:40], *engine.tokenize("Something else entirely.")]
    for tokens in (prompt, prompt, other):
        answers.append(said(engine, tokens, 12))
        start = engine.last_start
        assert start is not None
        reused.append(start.n_reused)
    engine.save_prefix(Path("state"))
    grown = [*other, *(token for token in answers[2] if token is not None), 5]
    going_on = said(engine, grown, 6)
    engine.reset()
    answers.append(said(engine, other, 12))
    engine.reset()
    cold = said(engine, grown, 6)
    engine.restore_prefix(Path("state"))
    restored = said(engine, grown, 6)
    seen["answers"], seen["reused"] = answers, reused
    seen["same"] = going_on == cold == restored
    engine.close()

    engine = opened(scripted)
    tokens = engine.render([Message("user", "hello")])
    events = list(engine.stream(tokens, GenerationConfig()))
    seen["reply"] = "".join(event.text for event in events)
    seen["finish"] = events[-1].finish_reason
    engine.close()

    engine = opened(heavy)
    due = time.monotonic() + 0.3
    late_prompt = [BOS] + [7] * 4000
    events = list(engine.stream(late_prompt, GenerationConfig(), lambda: time.monotonic() >= due))
    seen["late_s"] = time.monotonic() - due
    seen["stopped"] = events[-1].finish_reason
    engine.close()

    try:
        opened(composite)
    except EdgeError as error:
        seen["refused"] = f"{type(error).__name__}: {error}"
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
