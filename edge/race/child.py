"""One turn of one entrant, in a process of its own: `python -m boardfit.edge.race.child`.

A job comes as one JSON object on stdin, answers leave as JSON lines on stdout. What native code
prints to stdout goes to stderr instead.

    {"task": "measure", "engine": …, "bundle": …, "bundle_id": …, "settings": {…}, "tests": [{…}]}
        → {"load": {…}, "info": {…}, "baseline": {…}}, then {"trace": {…}, "flags": […]} per test
    {"task": "answer", …, "n_gen": 48}      → {"prompts": […], "answers": […]}   token ids, greedy
    {"task": "follow", …, "prompts": […], "answers": […]}
        → {"predicted": […]}                the entrant's own choice after every token of an answer
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from boardfit.edge.bench.conditions import disturbances, read_conditions
from boardfit.edge.bench.metrics import LoadTrace
from boardfit.edge.bench.runner import prompt_length, run_once
from boardfit.edge.bench.sampler import ResourceSampler, read_memory
from boardfit.edge.bench.trace_rows import compact_load, compact_trace
from boardfit.edge.bench.workloads import Test, fixed_tokens, prompt_hash
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.errors import EdgeError, IntegrityError
from boardfit.edge.types import Engine, GenerationConfig, LogitsEngine, Message

Job = Mapping[str, Any]
Answer = dict[str, Any]

#: What everybody is asked; a model without a chat template continues them.
QUESTIONS = (
    "Hello, who are you?",
    "Turn on the lights in the kitchen and set a timer for ten minutes.",
    "Why is the sky blue? Answer in two sentences.",
)


def run_job(job: Job) -> Iterator[Answer]:
    """The answers to one job, as they become known."""
    bundle = open_bundle(job["bundle"])
    if bundle.id != job["bundle_id"]:
        raise IntegrityError(f"{bundle.path} is another bundle than when the race began")
    model = bundle.model
    baseline = read_memory()
    settings = EngineSettings(**job["settings"])
    start_ns = time.monotonic_ns()
    engine = open_engine(job["engine"], model, settings)
    loaded_ns = time.monotonic_ns()
    with closing(engine):
        if job["task"] == "measure":
            config = GenerationConfig(max_tokens=1, ignore_eos=True)
            first = next(iter(engine.stream(fixed_tokens(engine, 8), config)))
            load = LoadTrace(start_ns, loaded_ns, first.t_ns, (read_memory(),))
            opened = {"info": asdict(engine.describe()), "baseline": asdict(baseline)}
            yield {"load": compact_load(load), **opened}
            yield from measure(engine, [Test(**test) for test in job["tests"]])
        elif job["task"] == "answer":
            yield answer(engine, job["n_gen"])
        else:
            yield {"predicted": follow(engine, job["prompts"], job["answers"])}


def measure(engine: Engine, tests: Sequence[Test]) -> Iterator[Answer]:
    """Every test once, after a warm-up that is dropped."""
    tokens = fixed_tokens(engine, max(prompt_length(test) for test in tests) + 1)
    run_once(engine, Test("prefill", min(32, len(tokens) - 1), 0, 0), tokens)
    run_once(engine, Test("decode", 0, 0, 4), tokens)
    with ResourceSampler() as sampler:
        for test in tests:
            before = read_conditions()
            trace = sampler.attach(run_once(engine, test, tokens))
            yield {
                "trace": compact_trace(trace),
                "flags": disturbances(before, read_conditions(), trace.heat, []),
                "prompt_sha256": prompt_hash(tokens[: prompt_length(test)]),
            }


def answer(engine: Engine, n_gen: int) -> Answer:
    """Greedy answers to the questions, as token ids."""
    prompts, answers = [], []
    config = GenerationConfig(max_tokens=n_gen, ignore_eos=True)
    for question in QUESTIONS:
        chat = engine.has_template
        tokens = engine.render([Message("user", question)]) if chat else engine.prompt(question)
        prompts.append(tokens)
        answers.append([e.token_id for e in engine.stream(tokens, config)])
    return {"prompts": prompts, "answers": answers}


def follow(
    engine: Engine, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[list[int]]:
    """Return the tokens that this engine would choose at each step of other engines' answers."""
    found = []
    for prompt, ids in zip(prompts, answers, strict=True):
        if isinstance(engine, LogitsEngine):
            logits = engine.logits([*prompt, *ids[:-1]])
            found.append([int(row.argmax()) for row in logits[len(prompt) - 1 :]])
        else:
            config = GenerationConfig(max_tokens=1, ignore_eos=True)
            chosen = []
            for i in range(len(ids)):
                event = next(iter(engine.stream([*prompt, *ids[:i]], config)))
                chosen.append(-1 if event.token_id is None else event.token_id)
            found.append(chosen)
    return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        for found in run_job(json.loads(sys.stdin.readline())):
            print(json.dumps(found), file=answers, flush=True)
    except EdgeError as error:
        failure = {"type": type(error).__name__, "message": str(error)}
        print(json.dumps({"error": {**failure, "next_step": error.next_step}}), file=answers)
        answers.flush()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
