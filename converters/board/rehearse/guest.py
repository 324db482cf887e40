"""Answer on the (emulated) board and print the board's choices.

The program opens the bundle with its own engine, answers, and prints its choice at every token of
the host's answer.

    python3 guest.py JOB.json        one JSON line per event on stdout

Started by the board's python3 with the installed `site` folder in JOB; imports nothing of the host.
"""

import dataclasses
import json
import sys
from typing import Any


def main(job: dict[str, Any]) -> None:
    sys.path.insert(0, job["site"])
    from boardfit.edge.bundle.bundle import open_bundle
    from boardfit.edge.engines import open_engine
    from boardfit.edge.engines.settings import EngineSettings
    from boardfit.edge.errors import EdgeError
    from boardfit.edge.types import GenerationConfig, Message

    try:
        bundle = open_bundle(job["bundle"], verify=True)
        report("verified", id=bundle.id)
        settings = EngineSettings.from_plan(bundle.plan)
        # One thread: emulated threads that wait for each other by spinning only slow each other
        # down. The kernels are the same ones.
        settings = dataclasses.replace(settings, n_threads=1)
        engine = open_engine(bundle.plan.engine, bundle.model, settings)
        info = engine.describe()
        report("loaded", engine=info.name, version=info.version, details=dict(info.details))
        text = job["prompt"]
        prompt = (
            engine.render([Message("user", text)]) if engine.has_template else engine.prompt(text)
        )
        report("prompt", ids=list(prompt))
        config = GenerationConfig(max_tokens=job["n_tokens"], ignore_eos=True)
        own = [event for event in engine.stream(prompt, config)]
        report("answer", text="".join(event.text for event in own))
        one = GenerationConfig(max_tokens=1, ignore_eos=True)
        known = [*prompt, *job["reference"]]
        for n in range(len(prompt), len(known)):
            chosen = next(iter(engine.stream(known[:n], one))).token_id
            report("token", index=n - len(prompt), id=chosen)
        engine.close()
        report("done")
    except EdgeError as error:
        report("failed", kind=type(error).__name__, message=str(error), next_step=error.next_step,
            exit_code=error.exit_code)  # fmt: skip
        sys.exit(error.exit_code)


def report(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}, default=str), flush=True)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        main(json.load(file))
