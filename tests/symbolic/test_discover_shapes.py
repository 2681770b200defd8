"""discover: what the structure of a trained network proposes to try next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kan_kernels import symbolic
from kan_kernels.symbolic.discovery import coordinates, inputs, networks, search, shapes

sympy = pytest.importorskip("sympy")


def points(count: int = 400, columns: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, columns, generator=generator, dtype=torch.float64) * 2 - 1


class Known(nn.Module):
    """A function in place of a network, in the units of networks."""

    def __init__(self, function: Any, data: networks.Data) -> None:
        super().__init__()
        self.function, self.data = function, data

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(x * self.data.half + self.data.center)
        return (y[:, None] - self.data.mean) / self.data.scale


def groups(function: Any, x: Tensor, valid: float = 0.0) -> dict[str, shapes.Groups]:
    data = inputs.split(x, function(x)[:, None], 1, 0.0, None, 0)
    trained = networks.Trained(0, valid, valid, Known(function, data))  # type: ignore[arg-type]
    return shapes.groups_of(data, trained)


def test_groups_of_a_network() -> None:
    """By addition, by multiplication, behind a function; nothing of a network far from the data."""
    x = points()

    def products(x: Tensor) -> Tensor:
        return x[:, 0] * x[:, 1] + (x[:, 2] + x[:, 3]).sin() + x[:, 4] ** 2 + x[:, 5]

    found = groups(products, x)
    assert found["additive"] == [(0, 1), (2, 3), (4,), (5,)]
    assert groups(products, x, valid=1.0) == {}
    found = groups(lambda x: (1.5 + x[:, 0] * x[:, 1]) * x[:, 2:].sum(1).sin(), x)
    assert found["multiplicative"] == [(0, 1), (2, 3, 4, 5)]

    def behind(x: Tensor) -> Tensor:
        both = (x[:, 2] - x[:, 3]) ** 2 + 2 * x[:, 2]  # a product of functions would separate behind exp
        return 1 / (7 + x[:, 0] ** 2 + x[:, 1] + both + x[:, 4] + x[:, 5])

    found = groups(behind, x)
    assert found["general"] == [(0,), (1,), (2, 3), (4,), (5,)]


def test_proposed_shapes() -> None:
    """A product for each pair that is added, a sum for all that stand alone; two factors are a product."""
    pairs, rest = [(0, 1), (2, 3), (4, 5)], [(0, 1), (2,), (3,), (4,), (5,)]
    assert list(shapes.proposed({"additive": pairs}, 6, 1)) == [(6, (0, 3), 1), (6, 3, 1)]
    assert list(shapes.proposed({"additive": rest}, 6, 2)) == [(6, (1, 1), 2), (6, 2, 2)]
    assert next(shapes.proposed({"multiplicative": [(0, 1), (2, 3)]}, 4, 1)) == (4, (0, 1), 1)
    assert list(shapes.proposed({"general": [(0,), (1,)]}, 2, 1)) == [(2, 1, 1)]
    assert list(shapes.proposed({}, 2, 1)) == []


def test_coordinates_of_groups() -> None:
    """Every way in which pairs are joined; none of three inputs, and not too many."""
    x, names = points(), {"x", "x^2", "1/x"}
    a, b, c, d, e, f = coordinates.inputs(x)
    systems = coordinates.grouped([(0, 1), (2, 3), (4, 5)], x, names)
    product = tuple(
        coordinates.joined("*", (p, 1.0, 1.0), (q, 1.0, 1.0)) for p, q in ((a, b), (c, d), (e, f))
    )
    assert (
        product in systems and len(set(systems)) == len(systems) == 27
    )  # nothing is divided by what may be 0
    one = coordinates.grouped([(0, 1), (2,), (3,)], x[:, :4], names)
    assert all(system[1:] == (c, d) for system in one) and len(one) > 3
    assert coordinates.grouped([(0, 1, 2), (3, 4)], x, names) == []
    assert coordinates.grouped([(0,), (1,)], x[:, :2], names) == []
    many = coordinates.grouped([(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)], points(columns=10), names)
    assert len(many) == 32


def test_proposals_come_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose structure is new waits until shapes that have it were read, and then is read."""
    x = points(120, 3)
    y = x[:, 0] * x[:, 1] + x[:, 2]
    read: list[str] = []
    found = {"additive": [(0, 1), (2,)]}
    monkeypatch.setattr(search, "groups_of", lambda data, trained: found if len(read) == 1 else {})

    def reading(self: Any, trained: networks.Trained, shape: str) -> None:
        read.append(shape)
        if len(read) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(search.reading.Reader, "read", reading)
    monkeypatch.setattr(search.networks, "COARSE", (3, 1))
    monkeypatch.setattr(search.networks, "FINE", ())
    symbolic.discover(x, y, loss=nn.functional.mse_loss, seeds=[0], budget=1e6, functions=["sin"])
    assert read == ["[3, 1]", "[3, (1, 1), 1]", "[3, 2, 1]", "[3, 5, 1]", "[3, 1, 1]"]


@pytest.mark.long
def test_three_products() -> None:
    """Neither a shape of the search nor a regression before it has three: a network's structure says so."""
    x = points(1000)
    y = x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] + x[:, 4] * x[:, 5]
    found = symbolic.discover(x, y, list("abcdef"), budget=1e6)
    a, b, c, d, e, f = sympy.symbols("a b c d e f")
    assert found.best.exact and sympy.simplify(found.formula - (a * b + c * d + e * f)) == 0
