"""A convolutional KAN on handwritten digits: KANConv2d in place of nn.Conv2d.

    python -m examples.use_convolution [STEPS]

8x8 images of scikit-learn's digits, two convolutions and a linear layer, beside the same network of
nn.Conv2d and SiLU. Needs scikit-learn (in the extra `bench`).
"""

import sys
import time

import torch
from torch import Tensor, nn

from kan_kernels import KANConv2d, KANLinear


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images (N, 1, 8, 8) in [-1, 1] and labels, to train and to test with: four fifths and one."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(data.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(y) * 4 // 5], order[len(y) * 4 // 5 :]
    return (x[train], y[train]), (x[test], y[test])


def networks() -> dict[str, nn.Module]:
    """Convolutions 1 -> 8 -> 16 with stride 2, then one layer from 16 x 2 x 2 to the ten digits."""
    kan = nn.Sequential(
        KANConv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        KANConv2d(8, 16, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.BatchNorm1d(64),
        KANLinear(64, 10),
    )
    conv = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.BatchNorm1d(64),
        nn.SiLU(),
        nn.Linear(64, 10),
    )
    return {"KANConv2d": kan, "nn.Conv2d": conv}


def train(model: nn.Module, steps: int) -> tuple[float, float]:
    """Share of test digits that are right, and milliseconds of a step on 256 images."""
    (x, y), (x_test, y_test) = digits()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = time.perf_counter()
    for _ in range(steps):
        batch = torch.randint(len(y), (256,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    milliseconds = 1e3 * (time.perf_counter() - start) / steps
    model.eval()
    with torch.no_grad():
        return float((model(x_test).argmax(1) == y_test).float().mean()), milliseconds


def main(steps: int = 200) -> dict[str, float]:
    """The accuracy of both."""
    accuracies = {}
    for name in ("KANConv2d", "nn.Conv2d"):
        torch.manual_seed(0)
        model = networks()[name]
        accuracies[name], milliseconds = train(model, steps)
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{name}: {accuracies[name]:.1%} of the test digits, {parameters} parameters, "
            f"{milliseconds:.1f} ms a step"
        )
    return accuracies


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
