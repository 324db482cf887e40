"""Train the sample model on one CPU core, from nothing, in about an hour.

    PYTHONPATH=scripts python -m lab.sample.train --out /tmp/sample-train
    PYTHONPATH=scripts python -m lab.sample.export --run /tmp/sample-train

Method: the generator makes fresh conversations for every step; loss is taken on the assistant's
tokens only; matrices are trained with Muon, embeddings and norms with AdamW; the learning rate
warms up, stays, and falls to zero over the last part. Every random choice follows from --seed.
A checkpoint is written every few minutes and picked up again when the command is repeated.
Not covered: bit-identical weights across machines, because matrix kernels differ.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from lab.sample.batches import batch, lesson_at
from lab.sample.muon import Muon
from lab.sample.network import SampleModel
from lab.sample.shape import Config
from lab.sample.tokenizer import train_tokenizer

MUON_LR = 0.015
ADAM_LR = 0.004
WARMUP_STEPS = 60
DECAY_SHARE = 0.5


def learning_rate(step: int, n_steps: int) -> float:
    """Factor on the peak rate: linear warm-up, flat, linear fall."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return min(1.0, (n_steps - step) / (DECAY_SHARE * n_steps))


def make_optimizers(model: SampleModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "layers" not in name]
    return [
        Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def load_tokenizer(out: Path, seed: int) -> Tokenizer:
    """The run's tokenizer, trained on first use."""
    path = out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(seed).save(str(path))
    return Tokenizer.from_file(str(path))


def save_checkpoint(
    path: Path,
    model: SampleModel,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    train_s: float,
) -> None:
    """Write beside and rename, so that a kill never leaves half a file."""
    scratch = path.with_suffix(".tmp")
    torch.save(
        {
            "model": model.state_dict(),
            "step": step,
            "train_s": train_s,
            "optimizers": [o.state_dict() for o in optimizers],
        },
        scratch,
    )
    scratch.replace(path)


def train(out: Path, n_steps: int, seed: int, save_every_s: float, n_threads: int = 1) -> None:
    """Train or go on training in `out` until `n_steps` are done."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(n_threads)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(out, seed)
    model = SampleModel(Config())
    optimizers = make_optimizers(model)
    path = out / "checkpoint.pt"
    first_step, before_s = 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first_step, before_s = int(saved["step"]), float(saved["train_s"])
    peaks = [[group["lr"] for group in o.param_groups] for o in (make_optimizers(model))]

    started = last_save = time.monotonic()
    losses: list[float] = []
    n_tokens = 0
    for step in range(first_step, n_steps):
        factor = learning_rate(step, n_steps)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        for layer in model.model.layers:
            layer.dropout = lesson_at(step).dropout
        inputs, targets, mask = batch(tokenizer, seed, step)
        hidden, _ = model.hidden(inputs, keep=mask)
        loss = functional.cross_entropy(model.logits(hidden), targets[mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        n_tokens += inputs.numel()
        now = time.monotonic()
        if (step + 1) % 25 == 0:
            rate_s = (now - started) / (step + 1 - first_step)
            line = {
                "step": step + 1,
                "loss": round(sum(losses) / len(losses), 4),
                "tokens_per_s": round(n_tokens / (now - started)),
                "train_s": round(before_s + now - started),
                "eta_s": round(rate_s * (n_steps - step - 1)),
            }
            print(json.dumps(line), flush=True)
            losses.clear()
        if now - last_save > save_every_s or step + 1 == n_steps:
            save_checkpoint(path, model, optimizers, step + 1, before_s + now - started)
            last_save = now


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the embedded sample model on a CPU")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=3750)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every-s", type=float, default=120.0)
    args = parser.parse_args()
    train(args.out, args.steps, args.seed, args.save_every_s, args.threads)


if __name__ == "__main__":
    main()
