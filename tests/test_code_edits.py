"""A layer whose code was edited is left alone, or its accelerated numbers are its own everywhere.

A few edits a peer run here; `make test-edits` runs 500 of each.
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
from code_edits import edited
from pykan_cases import kan
from torch import Tensor, nn

from benchmarks import basis_forms, efficient_kan_form
from kan_kernels.integrations import accelerate

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
