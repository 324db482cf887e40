"""Average the weights of training runs that share a beginning.

    PYTHONPATH=scripts python -m lab.sample.average --out DIR RUN=0.6 OTHER=0.4

The mean of two points of one trajectory lies in a flatter place than either and errs less on
wordings that neither was trained on ("stochastic weight averaging", Izmailov et al. 2018,
arXiv:1803.05407). Step count and optimizer state are the first run's, so that training can go on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch


def average(shares: list[tuple[Path, float]], out: Path) -> None:
    """Write the weighted mean of checkpoints to `out`. Raises ValueError unless shares sum to 1."""
    total = sum(share for _, share in shares)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"shares sum to {total:g}, expected 1")
    saved = [torch.load(run / "checkpoint.pt", weights_only=True) for run, _ in shares]
    mean = {
        name: sum(share * one["model"][name] for one, (_, share) in zip(saved, shares, strict=True))
        for name in saved[0]["model"]
    }
    out.mkdir(parents=True, exist_ok=True)
    torch.save({**saved[0], "model": mean}, out / "checkpoint.pt")
    shutil.copyfile(shares[0][0] / "tokenizer.json", out / "tokenizer.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN=SHARE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pairs = [text.rpartition("=") for text in options.runs]
    average([(Path(run), float(share)) for run, _, share in pairs], options.out)


if __name__ == "__main__":
    main()
