"""Runs in the ONNX builder's environment: small real networks, trained a little, as ONNX files.

python networks.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import nn


def picture_network() -> nn.Module:
    """Tells in which quarter of a picture a bright square lies; trained here to do so."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 4),
    )  # fmt: skip
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(60):
        pictures, quarters = squares(64)
        loss = nn.functional.cross_entropy(made(pictures), quarters)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


def squares(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    quarters = torch.randint(0, 4, (n,))
    pictures = 0.3 * torch.rand(n, 1, 16, 16)
    for i, quarter in enumerate(quarters.tolist()):
        row, column = 8 * (quarter // 2), 8 * (quarter % 2)
        pictures[i, 0, row + 2 : row + 6, column + 2 : column + 6] += 0.7
    return pictures, quarters


class Speech(nn.Module):
    """Features in, a distribution per frame out: a recurrent encoder, untrained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recurrent = nn.LSTM(40, 48, batch_first=True, bidirectional=True)
        self.output = nn.Linear(96, 30)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.output(self.recurrent(features)[0])


def main() -> None:
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    network = picture_network()
    axes = {0: "batch"}
    torch.onnx.export(
        network, (torch.randn(1, 1, 16, 16),), str(home / "picture.onnx"),
        input_names=["image"], output_names=["scores"],
        dynamic_axes={"image": axes}, dynamo=False,
    )  # fmt: skip
    torch.onnx.export(
        Speech().eval(), (torch.randn(1, 20, 40),), str(home / "speech.onnx"),
        input_names=["features"], output_names=["logits"],
        dynamic_axes={"features": {1: "frames"}}, dynamo=False,
    )  # fmt: skip
    pictures, quarters = squares(200)
    import numpy as np

    np.savez(home / "squares.npz", pictures=pictures.numpy(), quarters=quarters.numpy())


if __name__ == "__main__":
    main()
