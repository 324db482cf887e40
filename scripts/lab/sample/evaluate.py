"""Exact match of the sample model with torch: greedy, batched, weights as stored.

    PYTHONPATH=scripts python -m lab.sample.evaluate --split dev
    PYTHONPATH=scripts python -m lab.sample.evaluate --split held --write      once, at the end

The engine that runs on boards is measured elsewhere with the same `task`; this is the reference
before any 4-bit recipe. Prompts of equal length share a batch, so no padding can change a result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.sample.examples import MAX_NEW_TOKENS
from lab.sample import results, task
from lab.sample.chat_format import END_OF_TEXT, IM_END, render_prompt
from lab.sample.network import Cache, SampleModel
from lab.sample.shape import Config
from lab.sample.task import Example, TaskScore


def load_model(folder: Path) -> tuple[SampleModel, Tokenizer]:
    """The exported model, or a training run's checkpoint rounded to F16 as export would."""
    model = SampleModel(Config())
    if (folder / "model.safetensors").exists():
        state = load_file(folder / "model.safetensors")
    else:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    model.load_state_dict({name: weight.half().float() for name, weight in state.items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.no_grad()  # type: ignore[untyped-decorator]
def answer_all(
    model: SampleModel, tokenizer: Tokenizer, examples: Sequence[Example], batch_size: int = 64
) -> list[str]:
    """Greedy answers, in the order of `examples`."""
    prompts = [
        tokenizer.encode(render_prompt(list(e.messages)), add_special_tokens=False).ids
        for e in examples
    ]
    by_length: dict[int, list[int]] = defaultdict(list)
    for n, prompt in enumerate(prompts):
        by_length[len(prompt)].append(n)
    answers = [""] * len(examples)
    for members in by_length.values():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            said = _greedy(model, tokenizer, torch.tensor([prompts[n] for n in part]))
            for n, ids in zip(part, said, strict=True):
                answers[n] = tokenizer.decode(ids)
    return answers


def _greedy(model: SampleModel, tokenizer: Tokenizer, tokens: torch.Tensor) -> list[list[int]]:
    stops = {tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT)}
    said: list[list[int]] = [[] for _ in range(len(tokens))]
    open_rows = set(range(len(tokens)))
    cache: Cache | None = None
    for _ in range(MAX_NEW_TOKENS):
        hidden, cache = model.hidden(tokens, cache)
        tokens = model.logits(hidden[:, -1]).argmax(-1, keepdim=True)
        for row in sorted(open_rows):
            token = int(tokens[row])
            if token in stops:
                open_rows.discard(row)
            else:
                said[row].append(token)
        if not open_rows:
            break
    return said


def score_model(folder: Path, examples: Sequence[Example]) -> TaskScore:
    """Score of the model in `folder`."""
    model, tokenizer = load_model(folder)
    answers = iter(answer_all(model, tokenizer, examples))
    return task.score(examples, lambda _messages: next(answers))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="exact match of the sample model with torch")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--split", choices=("dev", "held"), default="dev")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--history", type=int, default=0, help="answered turns before the request")
    parser.add_argument("--misses", type=int, default=0, help="print this many wrong answers")
    parser.add_argument("--write", action="store_true", help="record held-out result as recipe f16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    examples = task.dev(args.limit) if args.split == "dev" else task.held_out(args.limit)
    if args.limit is None:
        examples += task.new_words(args.split)
    if args.history:
        examples = task.with_history(examples, args.history)
    started = time.monotonic()
    found = score_model(args.model, examples)
    for miss in found.misses[:: max(1, len(found.misses) // args.misses)] if args.misses else ():
        print(
            f"{miss.example.messages[-1]['content']}\n  want {miss.example.expected}\n"
            f"  got  {miss.got}"
        )
    print(
        json.dumps(
            {
                "split": args.split,
                "history": args.history,
                **found.to_dict(),
                "eval_s": round(time.monotonic() - started, 1),
            }
        )
    )
    if args.write:
        if args.split != "held" or args.history or args.limit:
            parser.error("--write records the full held-out result: use --split held alone")
        size = (args.model / "model.safetensors").stat().st_size
        results.update("f16", found, size, f"torch {torch.__version__}", model_dir=args.model)


if __name__ == "__main__":
    main()
