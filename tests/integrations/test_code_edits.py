"""A layer whose code was edited is left alone, or its accelerated numbers are its own everywhere.

A few edits a peer run here; `make test-edits`, of `make test-all`, runs 500 of each.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import basis_forms, efficient_kan_form
from code_edits import edited, inserted
from kan_kernels.integrations import accelerate
from pykan_cases import kan

F64 = torch.float64
IN, OUT = 5, 3


@dataclass(frozen=True)
class Peer:
    """What of its code is edited, (class or module, name); how a layer is made; how far its digits reach."""

    code: tuple[tuple[Any, str], ...]
    make: Callable[[], nn.Module]
    far: float = 1e25
    fewer: bool = False  # inputs, where its own code takes long


_EFFICIENT, _FAST = efficient_kan_form.KANLinear, basis_forms.FastKANLayer
_CHEBY, _FOURIER = basis_forms.ChebyKANLayer, basis_forms.NaiveFourierKANLayer
PEERS = {
    "efficient-kan": Peer(
        ((_EFFICIENT, "forward"), (_EFFICIENT, "b_splines"), (_EFFICIENT, "scaled_spline_weight")),
        lambda: _EFFICIENT(IN, OUT, 4, 3),
    ),
    "FastKAN": Peer(((_FAST, "forward"), (basis_forms.GaussianBasis, "forward")), lambda: _FAST(IN, OUT)),
    "ChebyKAN": Peer(((_CHEBY, "forward"),), lambda: _CHEBY(IN, OUT, 4)),
    "FourierKAN": Peer(((_FOURIER, "forward"),), lambda: _FOURIER(IN, OUT, 4), far=1e4),
    "pykan KANLayer": Peer(
        (
            (kan.KANLayer, "forward"),
            (sys.modules["kan.KANLayer"], "coef2curve"),
            (sys.modules["kan.spline"], "B_batch"),
        ),
        lambda: kan.KANLayer(in_dim=IN, out_dim=OUT, num=4),
    ),
    "pykan MultKAN": Peer(
        ((kan.KAN, "forward"), (sys.modules["kan.Symbolic_KANLayer"].Symbolic_KANLayer, "forward")),
        lambda: kan.KAN(width=[IN, OUT], grid=4, auto_save=False),
        fewer=True,
    ),
}


def inputs(far: float, generator: torch.Generator) -> dict[str, Tensor]:
    """x of every size and shape, in and far outside the comfortable range."""

    def normal(*shape: int) -> Tensor:
        return 0.8 * torch.randn(*shape, generator=generator, dtype=F64)

    spread = torch.rand(60, IN, generator=generator, dtype=F64)
    signs = torch.where(torch.rand(60, IN, generator=generator) < 0.5, -1.0, 1.0).double()
    huge = signs * 10 ** (torch.log10(torch.tensor(far, dtype=F64)) * spread)
    mixed = torch.where(torch.rand(60, IN, generator=generator) < 0.3, huge, normal(60, IN))
    knots = torch.linspace(-2.5, 2.5, 51, dtype=F64)[:, None].expand(-1, IN).clone()
    broken = normal(12, IN)
    broken[range(12), [n % IN for n in range(12)]] = torch.tensor(
        [torch.nan, torch.inf, -torch.inf] * 4, dtype=F64
    )
    return {
        "rows": normal(40, IN), "huge": huge, "mixed": mixed, "tiny": 1 / huge, "knots": knots,
        "broken": broken,
        "1-D": normal(IN), "3-D": normal(2, 3, IN), "one": normal(1, IN), "5000": normal(5000, IN),
        "none": normal(0, IN), "float32": normal(20, IN).float(), "twice as wide": normal(4, 2 * IN),
    }  # fmt: skip


def run(layer: Any, x: Tensor) -> Any:
    """y and the gradient of x, or the class of the error."""
    layer = layer.float() if x.dtype == torch.float32 else layer.double()
    x = x.clone().requires_grad_()
    try:
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        (grad,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
    except Exception as error:
        return type(error)
    return y.detach(), torch.zeros_like(x) if grad is None else grad


def same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, type) or isinstance(b, type):
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = max(1.0, float(b.abs().nan_to_num(0, 0, 0).max())) if b.numel() else 1.0
    near = (a == b) | ((a - b).abs() <= tolerance * scale) | (a.isnan() & b.isnan())
    return bool(near.all())


def failures(own: list[Any], fast: list[Any], peers: list[Any], fast_peers: list[Any]) -> list[str]:
    """Where an accelerated layer differs from its own code, more than the peer's does from its own."""
    found = []
    names = list(inputs(1.0, torch.Generator()))
    for name, *results in zip(names, own, fast, peers, fast_peers, strict=True):
        tolerance = 1e-2 if name == "float32" else 1e-8
        if any(isinstance(result, type) for result in results):
            # a batch without rows is the one thing that the kernels can and some peers cannot
            wrong = type(results[0]) is not type(results[1]) and not (
                name == "none" and isinstance(results[0], type)
            )
            found += [f"{name}: {results[0]} and {results[1]}"] if wrong else []
            continue
        for n, part in enumerate(("y",) if name == "broken" else ("y", "dx")):
            a, b, c, d = (result[n] for result in results)
            by_row = a.dim() == 2 and a.shape == b.shape == c.shape == d.shape
            for q, r, s, t in zip(a, b, c, d, strict=True) if by_row else [(a, b, c, d)]:
                # the peer itself and its kernels differ where it has inf * 0, or acos at 1
                if not (same(r, q, tolerance) or (same(q, s, tolerance) and same(r, t, tolerance))):
                    found.append(f"{name}: {part}")
                    break
    return found


@pytest.mark.parametrize("name", PEERS)
def test_edits(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each edit is left alone, or its accelerated layer computes what its own code does."""
    peer, draw, wanted = PEERS[name], random.Random(20241129), int(request.config.getoption("--edits"))
    xs = list(inputs(peer.far, torch.Generator().manual_seed(3)).values())
    xs = [x[:50] if peer.fewer else x for x in xs]
    fresh = peer.make().double()
    peers, fast_peers = copy.deepcopy(fresh), copy.deepcopy(fresh)
    assert accelerate(fast_peers).taken
    known = [[run(layer, x) for x in xs] for layer in (peers, fast_peers)]
    taken, left, wrong = [], 0, []
    for n in range(wanted):
        owner, attribute = draw.choice(peer.code)
        value = vars(owner)[attribute]
        function = value.fget if isinstance(value, property) else value
        new, what = edited(function, draw, f"<edit {n} of {name}>")
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(owner, attribute, property(new) if isinstance(value, property) else new)
            own, fast = copy.deepcopy(fresh), copy.deepcopy(fresh)
            report = accelerate(fast)
            if "" not in [entry.name for entry in report.taken]:
                assert report.left and all(entry.why for entry in report.left), what
                left += 1
                if not report.taken:
                    continue
            else:
                taken.append(what)
            found = failures(*([run(layer, x) for x in xs] for layer in (own, fast)), *known)
        wrong += [f"{what}: {', '.join(found)}"] if found else []
    print(f"{name}: {wanted} edits, {left} left alone, {len(taken)} taken: {taken}")
    assert not wrong, "\n".join(wrong)
    assert left >= wanted / 3 and left + len(taken) == wanted


LISTED = {
    "efficient-kan": (
        *(
            "x = x.clamp(-3, 3)",
            "x = x.clamp(-10, 10)",
            "x = torch.nan_to_num(x)",
            "x = x.double().to(x.dtype)",
        ),
        "if x.abs().max() > 100: x = x / 2",
        "if x.shape[0] > 4096: x = x[:4096]",
        "if self.in_features > 64: x = 2 * x",
        "if self.grid.shape[1] > 40: x = 2 * x",
        "x = x[:, : self.in_features]; x = x[:9000]",
        "if x.dtype == torch.bfloat16: x = x + 1",
        "x.mul_(1.5)",
        "self.grid = self.grid * 1.01",
    ),
    "FastKAN": ("x = x.clamp(-10, 10)", "x = x.clip(-10, 10)", "x = torch.where(x > 30, 0 * x, x)"),
    "ChebyKAN": ("x = x.clamp(-20, 20)", "x = x * (x.abs() < 30)"),
    "FourierKAN": ("x = x.clamp(-6.283, 6.283)", "x = torch.remainder(x, 6.283185307179586)"),
    "pykan KANLayer": ("x = x.clamp(-3, 3)", "x = x * 1"),
    "pykan MultKAN": ("x = x.clamp(-3, 3)",),
}


@pytest.mark.parametrize("name, line", [(name, line) for name, lines in LISTED.items() for line in lines])
def test_found_by_users(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits of copies that were taken once, and their like: left alone, with the line."""
    peer = PEERS[name]
    owner, attribute = peer.code[0]
    new = inserted(vars(owner)[attribute], line, f"<{line} in {name}>")
    monkeypatch.setattr(owner, attribute, new)
    report = accelerate(peer.make())
    assert "" not in [entry.name for entry in report.taken]
    (why,) = [entry.why for entry in report.left if entry.name == ""]
    assert "line " in why and line.split(";")[-1].partition(":")[0].strip()[:12] in why, why


def test_flattened_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that flattens its input is taken for rows, and runs its own code on anything else."""
    new = inserted(vars(_EFFICIENT)["forward"], "x = x.flatten(1)", "<flatten>")
    monkeypatch.setattr(_EFFICIENT, "forward", new)
    own = _EFFICIENT(6, 2).double()
    fast = copy.deepcopy(own)
    assert accelerate(fast).taken
    for shape in ((4, 6), (4, 2, 3), (4, 1, 6), (4, 6, 1)):
        x = torch.randn(shape, dtype=F64)
        torch.testing.assert_close(fast(x), own(x))
    with pytest.raises(AssertionError):
        fast(torch.randn(4, 2, 6, dtype=F64))
