"""A small GPT on the bytes of Python's language reference, with MLP, multi-head and KANLinear blocks.

    python -m examples.language_model [--seeds 0 1 2] [--steps 400] [--rate 0.002] [--fast] [--check]

Blocks have the same number of parameters. The learning rate of each is the best of three in a short trial,
and constant from then on, so that a curve at any point is a run that was stopped there: at the same number of
tokens, or after the same time. The clock is the process' own CPU time on one thread. Writes
benchmarks/results/language_model.json, docs/figures/language_model.svg and a table in docs/heads.md.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import math
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.document import RESULTS
from benchmarks.readme import refresh
from benchmarks.report import markdown_table
from kan_kernels import KANFeedForward, KANLinear

from .common import save_figure

PATH = RESULTS / "language_model.json"
PAGE = Path(__file__).absolute().parent.parent / "docs" / "heads.md"
COMMAND = "python -m examples.language_model"
RATES = (1e-3, 2e-3, 4e-3)
FIRST = 0.2  # root mean square of every block's output at the start
HEADS = {"KAN, 1 head": 1, "KAN, 4 heads": 4}
KINDS = ("MLP", *HEADS, "KANLinear")


@dataclass(frozen=True)
class Size:
    """Of the model and of a run."""

    width: int = 128
    layers: int = 4
    context: int = 128
    batch: int = 16
    steps: int = 400
    trial: int = 60  # steps to choose a learning rate
    every: int = 25  # steps between looks at the held-out text
    looked: int = 12  # batches of a look

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.context


FAST = Size(width=32, layers=1, context=32, batch=8, steps=30, trial=10, every=10, looked=2)


def text() -> tuple[bytes, bytes]:
    """Return what is learnt and what is held out: of every 200 paragraphs of the language reference, 20.

    Topics repeat each other: each paragraph counts once, so that none is in both parts.
    """
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    pieces = (p.strip("\n") for name in sorted(topics) for p in topics[name].split("\n\n"))
    paragraphs = dict.fromkeys(p for p in pieces if p)
    parts: tuple[list[str], list[str]] = ([], [])
    for n, paragraph in enumerate(paragraphs):
        parts[n % 200 >= 180].append(paragraph)
    learnt, held_out = ("\n\n".join(part).encode() for part in parts)
    return learnt, held_out


class Batches:
    """Random pieces of a text, as numbers of the bytes that occur in it."""

    def __init__(self, data: bytes, alphabet: bytes, size: Size, seed: int) -> None:
        places = {byte: n for n, byte in enumerate(alphabet)}
        self.data = torch.tensor([places[byte] for byte in data if byte in places])
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return tokens and the tokens that follow, (batch, context)."""
        last = len(self.data) - self.size.context - 1
        starts = torch.randint(last, (self.size.batch, 1), generator=self.generator)
        pieces = self.data[starts + torch.arange(self.size.context + 1)]
        return pieces[:, :-1], pieces[:, 1:]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.project, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.attention, self.inner = Attention(width), inner

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        y: Tensor = x + self.inner(x)
        return y


class GPT(nn.Module):
    """The blocks between an embedding and its transpose."""

    def __init__(self, kind: str, letters: int, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, size.width)
        self.places = nn.Parameter(0.1 * torch.randn(size.context, size.width))
        self.blocks = nn.Sequential(*(Block(size.width, inner(kind, size.width)) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        y: Tensor = self.norm(self.blocks(x)) @ self.embed.weight.t()
        return y


def block_of(kind: str, width: int, hidden: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """Return a block, and the parameters that its output is proportional to."""
    if kind == "MLP":
        mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width, bias=False)
        )
        return mlp, [mlp[3].weight]
    if kind in HEADS:
        tied = KANFeedForward(width, hidden, heads=HEADS[kind])
        return tied, [tied.down.mix]
    options: dict[str, Any] = {"grid_size": 5, "grid_range": (-3.0, 3.0)}
    last = KANLinear(hidden, width, **options)
    norms = (nn.LayerNorm(n, elementwise_affine=False) for n in (width, hidden))
    kan = nn.Sequential(next(norms), KANLinear(width, hidden, **options), next(norms), last)
    assert last.base_weight is not None
    return kan, [last.spline_weight, last.base_weight]


def inner(kind: str, width: int) -> nn.Module:
    """Return the block of a kind with the parameters of the MLP, 4 times as wide inside as outside."""
    wanted = count(block_of("MLP", width, 4 * width)[0])
    step = HEADS.get(kind, 1)
    one, two = (count(block_of(kind, width, n * step)[0]) for n in (1, 2))
    hidden = max(step, round((wanted - one) / (two - one) + 1) * step)
    block, last = block_of(kind, width, hidden)
    with torch.no_grad():
        y = block(torch.randn(256, width))
        for parameter in last:
            parameter *= FIRST / y.square().mean().sqrt()
    return block


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def train(
    kind: str, seed: int, rate: float, steps: int, texts: tuple[bytes, bytes], size: Size
) -> dict[str, Any]:
    """Return a curve of [tokens, seconds of training, loss on the held-out text in bits a byte]."""
    torch.manual_seed(seed)
    alphabet = bytes(sorted(set(texts[0])))
    model = GPT(kind, len(alphabet), size)
    batches = Batches(texts[0], alphabet, size, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / (0.05 * size.steps)))
    curve, seconds = [[0, 0.0, look(model, texts[1], alphabet, size)]], 0.0
    for step in range(1, steps + 1):
        tokens, following = batches.next()
        began = time.process_time()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm.step()
        seconds += time.process_time() - began
        if step % size.every == 0 or step == steps:
            curve.append([step * size.tokens, seconds, look(model, texts[1], alphabet, size)])
    if not math.isfinite(curve[-1][2]):
        curve[-1][2] = math.inf
    return {"kind": kind, "seed": seed, "rate": rate, "parameters": count(model), "curve": curve}


def best_rate(kind: str, texts: tuple[bytes, bytes], size: Size) -> float:
    """Return the learning rate whose loss is the lowest after a short trial, of a seed that is not shown."""
    losses = {rate: train(kind, 1000, rate, size.trial, texts, size)["curve"][-1][2] for rate in RATES}
    return min(losses, key=lambda rate: losses[rate])


@torch.no_grad()
def look(model: nn.Module, held_out: bytes, alphabet: bytes, size: Size) -> float:
    """Return the loss on the held-out text in bits a byte, of the same pieces every time."""
    batches = Batches(held_out, alphabet, size, seed=1)
    losses = []
    for _ in range(size.looked):
        tokens, following = batches.next()
        losses.append(float(F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())))
    return statistics.fmean(losses) / math.log(2)


def loss_at(curve: list[list[float]], axis: int, place: float) -> float:
    """Return the loss where a curve has as many tokens (axis 0) or seconds (1), between two looks."""
    for before, after in itertools.pairwise(curve):
        if before[axis] <= place <= after[axis]:
            share = (place - before[axis]) / (after[axis] - before[axis])
            return before[2] + share * (after[2] - before[2])
    return math.nan


def run(seeds: list[int], size: Size, given: float | None = None) -> dict[str, Any]:
    """Return the curves of all kinds and seeds, and what they were run with; a rate that is given for all."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    texts = text()
    rates = {kind: best_rate(kind, texts, size) if given is None else given for kind in KINDS}
    runs = []
    for seed, kind in itertools.product(seeds, KINDS):  # kinds by turns: a machine that slows down slows all
        runs.append(train(kind, seed, rates[kind], size.steps, texts, size))
        last = runs[-1]["curve"][-1]
        print(
            f"{kind}, seed {seed}, rate {rates[kind]:g}: {last[2]:.3f} bits a byte, {last[1]:.0f} s",
            flush=True,
        )
    return {
        "size": {**size.__dict__, "tokens": size.tokens},
        "bytes": [len(part) for part in texts],
        "sha256": hashlib.sha256(texts[0] + texts[1]).hexdigest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "runs": runs,
    }


def summary(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each kind: losses at the same tokens and at the same time, as the slowest allows."""
    of = {kind: [r for r in result["runs"] if r["kind"] == kind] for kind in KINDS}
    tokens = min(r["curve"][-1][0] for r in result["runs"])
    seconds = min(r["curve"][-1][1] for r in result["runs"])
    speeds = {
        kind: statistics.median(r["curve"][-1][0] / r["curve"][-1][1] for r in of[kind]) for kind in KINDS
    }
    rows = []
    for kind in KINDS:
        row = {"kind": kind, "parameters": of[kind][0]["parameters"], "rate": of[kind][0]["rate"]}
        row |= {"speed": speeds[kind], "ratio": speeds[kind] / speeds["MLP"], "seconds": seconds}
        for name, axis, place in (("same_tokens", 0, tokens), ("same_time", 1, seconds)):
            losses = [loss_at(r["curve"], axis, place) for r in of[kind]]
            row[name] = [statistics.fmean(losses), statistics.pstdev(losses)]
        rows.append(row)
    return rows


def block(result: dict[str, Any]) -> str:
    """Return the Markdown between the markers of the page."""
    rows, size = summary(result), result["size"]
    heads = ["block", "parameters", "learning rate", "tokens a second", "of MLP's"]
    heads += ["bits a byte, same tokens", "same time"]
    cells = [
        [
            r["kind"], f"{r['parameters']:,}", f"{r['rate']:g}", f"{r['speed']:,.0f}", f"{r['ratio']:.2f}x",
            *(f"{r[name][0]:.3f} ± {r[name][1]:.3f}" for name in ("same_tokens", "same_time")),
        ]
        for r in rows
    ]  # fmt: skip
    tokens = max(r["curve"][-1][0] for r in result["runs"])
    seeds = len({r["seed"] for r in result["runs"]})
    note = (
        f"GPT of {size['layers']} layers, width {size['width']}, context {size['context']}, float32, one "
        f"thread; {tokens:,} tokens, {seeds} seed{'s' * (seeds > 1)} (mean ± standard deviation), on "
        f"held-out text; the same time is {rows[0]['seconds']:.0f} s, what the fastest took. torch "
        f"{result['torch']}, {result['cpu']}, Python {result['python']}."
    )
    return "\n".join([markdown_table(heads, cells), "", note, "", PICTURE, ""])


PICTURE = "![loss against tokens and time](figures/language_model.svg)"


def picture(result: dict[str, Any]) -> Any:
    """Return a figure: the loss of every run against tokens and against time."""
    from kan_kernels.plotting.style import matplotlib, new_figure, style

    matplotlib()
    with style():
        figure = new_figure(8.0, 3.2, layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for ax, axis, what in zip(both, (0, 1), ("tokens", "seconds of one thread"), strict=True):
            for n, kind in enumerate(KINDS):
                for m, r in enumerate(r for r in result["runs"] if r["kind"] == kind):
                    points = r["curve"][1:]
                    called = {"label": kind} if m == 0 else {}
                    ax.plot([p[axis] for p in points], [p[2] for p in points], f"C{n}", lw=1.2, **called)
            ax.set(xlabel=what)
        both[0].set(ylabel="held-out loss, bits a byte")
        both[0].legend(frameon=False)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=Size.steps)
    parser.add_argument("--rate", type=float, help="learning rate of all, in place of trials")
    parser.add_argument("--fast", action="store_true", help="a toy run, for tests")
    parser.add_argument("--check", action="store_true", help="compare the page with the result file")
    options = parser.parse_args()
    if options.check:
        return refresh(PAGE, block(json.loads(PATH.read_text())), True, COMMAND, "language")
    size = FAST if options.fast else Size(steps=options.steps)
    result = run(options.seeds[:1] if options.fast else options.seeds, size, options.rate)
    if options.fast:
        path = Path(__file__).parent / "results" / "language_model.fast.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        return 0
    PATH.write_text(json.dumps(result, indent=1) + "\n")
    save_figure(picture(result), "language_model")
    return refresh(PAGE, block(result), False, COMMAND, "language")


if __name__ == "__main__":
    sys.exit(main())
