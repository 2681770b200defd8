"""What discover finds without training: coordinates, splines of them, forms of these, laws of that kind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels import symbolic
from kan_kernels.nn import function_library as library
from kan_kernels.symbolic.discovery import assemble, constants, coordinates, inputs, present, separable
from kan_kernels.symbolic.discovery.coordinates import Coordinate, joined
from kan_kernels.symbolic.discovery.form import Form, Term, evaluate
from kan_kernels.symbolic.discovery.joint import settled
from kan_kernels.symbolic.discovery.propose import EdgeChoice
from kan_kernels.symbolic.discovery.separable import Splines, Structure

sympy = pytest.importorskip("sympy")

A, B, C = (Coordinate("in", i) for i in range(3))
RATIO = joined("*", (A, 1.0, 1.0), (B, -1.0, 1.0))
SCALED = joined("*", (joined("+", (A, 1.0, 1.0), (B, 1.0, -1.0)), 1.0, 1.0), (C, -1.0, 1.0))


def points(count: int = 300, columns: int = 3, low: float = 1.0, high: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, columns, generator=generator, dtype=torch.float64) * (high - low) + low


def data_of(x: Tensor, y: Tensor) -> Any:
    return inputs.split(*inputs.rows_of(x, y, None), None, 0)


def test_coordinates() -> None:
    """Their values and layers; no powers of what is negative or near a pole; stages for any inputs."""
    x = points()
    torch.testing.assert_close(SCALED.value(x), (x[:, 0] - x[:, 1]) / x[:, 2])
    assert SCALED.depth == 2
    assert coordinates.needed([SCALED, B])[0] == [A, B, C] and len(coordinates.needed([SCALED, B])) == 3
    assert coordinates.needed([A, B]) == [[A, B]]
    assert RATIO.possible(x) and not RATIO.possible(x - 2)
    assert not joined("*", (A, 0.5, 1.0), (B, 1.0, 1.0)).possible(-x)
    names = set(library.names())
    for columns, counts in ((1, [1]), (2, [1, 27]), (5, [1, 40]), (11, [1])):
        own = points(columns=columns)
        stages = list(coordinates.systems(own, names))
        assert [len(stage) for stage in stages] == counts
    stages = list(coordinates.systems(x, names))
    systems = [system for stage in stages for system in stage]
    assert len(stages) == 3 and len(set(systems)) == len(systems)
    assert (SCALED, C) in systems and (RATIO, B, C) in systems
    few = [system for stage in coordinates.systems(x, {"x"}) for system in stage]
    assert RATIO not in {c for system in few for c in system} and len(few) > 10


def test_splines_say_which_structure_holds() -> None:
    """The true one is explained to a share of 1e-3 or less, the same splines in a wrong one are not."""
    x = points(800)
    a, b, c = x.unbind(1)
    plain = coordinates.inputs(x)
    cases = [
        ((a * b / 3 + c / 2).exp(), "sums", (joined("*", (A, 1.0, 1.0), (B, 1.0, 1.0)), C), plain),
        ((a.sin() + b**2 + 1 / c).sqrt(), "sums", plain, (RATIO, C)),
        ((3 * a).sin() * (b - 2) * c, "product", plain, (RATIO, C)),
        (a + b.exp() + a.sqrt() * (2 * b).cos() * c, "both", plain, None),
    ]
    for y, kind, right, wrong in cases:
        splines = Splines(data_of(x, y))
        goals = list(separable.targets(splines.y, set(library.names())))
        spread = float(y.std())

        def error(system: Any, kind=kind, splines=splines, goals=goals, spread=spread) -> float:
            if kind == "sums":
                return min(s.valid for s in splines.sums(system, goals)) / spread
            return getattr(splines, kind)(system, goals[0]).valid / spread

        assert error(right) < 1e-3, (kind, error(right))
        assert wrong is None or error(wrong) > 2e-2
    outer = {goal.name for goal in goals}
    assert {"x", "sqrt", "exp", "1/x", "1/sqrt"} <= outer and "arcsin" not in outer


def random_choice(generator: torch.Generator, outer: str) -> EdgeChoice:
    names = ("x^2", "1/x", "exp", "log", "x")
    name = names[int(torch.randint(len(names), (1,), generator=generator))]
    a, b, c, d = (torch.rand(4, generator=generator, dtype=torch.float64) + 0.5).tolist()
    sign = -1.0 if outer != "x" else 1.0
    return EdgeChoice(name, (a, b, c, d), 1.0, 0.0, outer, sign)


KINDS = ["sum", "product", "layered", "both"]


@pytest.mark.parametrize(
    ("kind", "outer"),
    [("sum", "exp"), *((kind, outer) for kind in KINDS for outer in ("x", "arctan", "1/x"))],
)
def test_a_structure_as_a_form(kind: str, outer: str) -> None:
    """The form has the values of the structure; so has it as a KAN, and after all rewritings of constants."""
    generator = torch.Generator().manual_seed(len(kind) + len(outer))
    x = points(30)
    system = (A, B, C) if kind == "both" else (SCALED, RATIO, C)
    x = x[x[:, 0] > x[:, 1]]  # all coordinates are positive
    z = [c.value(x) for c in system]
    factors = ["exp", "x", "1/x"] if kind == "layered" else ["x"] * 3
    chosen = tuple(random_choice(generator, name) for name in factors * (2 if kind == "both" else 1))

    def curve(choice: EdgeChoice, z: Tensor) -> Tensor:
        a, b, c, d = choice.affine
        inner = c * library.get(choice.name).torch(a * z + b) + d
        return choice.outer_sign * library.get(choice.outer).torch(inner)

    values = [curve(c, z[n % 3]) for n, c in enumerate(chosen)]
    if kind == "sum":
        inner = torch.stack(values).sum(0)
    elif kind == "both":
        inner = torch.stack(values[:3]).sum(0) + torch.stack(values[3:]).prod(0)
    else:
        inner = torch.stack(values).prod(0)
    structure = Structure("product" if kind == "layered" else kind, system, outer, -1.0, (), False, 0.0, 0.0)
    form, theta, status = assemble.build(3, structure, chosen)
    assert form.size == len(theta) == len(status)
    sign = -1.0 if outer != "x" or "product" in structure.kind else 1.0
    expected = sign * library.get(outer).torch(inner)
    good = expected.isfinite() & (expected.abs() < 1e6)
    assert good.sum() > 5
    before = evaluate(form, theta, x)[0][:, 0]
    torch.testing.assert_close(before[good], expected[good], rtol=1e-9, atol=1e-9)
    for changed in (settled(form, theta), constants.turned(form, settled(form, theta))):
        torch.testing.assert_close(
            evaluate(form, changed, x)[0][good, 0], expected[good], rtol=1e-8, atol=1e-8
        )
    with torch.no_grad():
        own = present.model_of(form, theta)(x)[:, 0]
    torch.testing.assert_close(own[good], expected[good], rtol=1e-9, atol=1e-9)
    held = status == assemble.HELD
    for gauge in constants.gauges(form):
        if not constants._moves(gauge, theta, held):
            other = gauge.apply(theta, 1.7)
            assert torch.equal(other[held], theta[held])
            torch.testing.assert_close(
                evaluate(form, other, x)[0][good, 0], expected[good], rtol=1e-8, atol=1e-8
            )


def test_a_form_with_products_as_a_kan() -> None:
    """Products of three and of two, in any order among the sums, and as outputs."""
    form = Form(
        2,
        (
            (((Term(0, "x"),), (Term(1, "exp"),), (Term(1, "x"),)), ((Term(0, "sin"),),)),
            (((Term(0, "x"),), (Term(1, "x^2"),)), ((Term(1, "x"),),), ((Term(0, "x"),), (Term(0, "x"),))),
        ),
    )
    theta = torch.randn(form.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = points(20, 2)
    with torch.no_grad():
        torch.testing.assert_close(present.model_of(form, theta)(x), evaluate(form, theta, x)[0])


LAWS = [
    ("a*c/sqrt(1 - a**2/(6*b)**2)", ["x", "x^2", "1/x", "1/sqrt"]),
    ("exp(-(a/b)**2/2)/b", ["x", "x^2", "1/x", "exp", "gaussian"]),
    ("a + b + 2*sqrt(a*b)*cos(c)", ["x", "x^2", "sqrt", "cos"]),
    ("1/(1/a + b/c)", None),
]


@pytest.mark.parametrize(("law", "functions"), LAWS[:1])
def test_finds_laws_that_networks_do_not(law: str, functions: list[str] | None) -> None:
    """Exactly, without a network, in seconds."""
    symbols = sympy.symbols("a b c", positive=True)
    expression = sympy.sympify(law, locals={s.name: s for s in symbols})
    x = points(1000, low=1.0, high=5.0)
    y = torch.from_numpy(sympy.lambdify(symbols, expression, "numpy")(*x.T.numpy()))
    options: dict[str, Any] = {"names": ["a", "b", "c"], "functions": functions}
    found = symbolic.discover(x, y, **options, budget=300)
    names = [sympy.Symbol(s.name) for s in symbols]
    beyond = points(100, low=0.8, high=5.5).T.numpy()
    values = [
        sympy.lambdify(s, f, "numpy")(*beyond) for s, f in ((names, found.formula), (symbols, expression))
    ]
    assert found.best.exact and abs(values[0] - values[1]).max() < 1e-9
    assert "spline" in found.best.shape and found.structures >= 1 and found.networks == 0


@pytest.mark.long
@pytest.mark.parametrize(("law", "functions"), LAWS[1:])
def test_finds_more_laws(law: str, functions: list[str] | None) -> None:
    """The same, for what takes longer."""
    test_finds_laws_that_networks_do_not(law, functions)


@pytest.mark.parametrize(
    "law", ["a*cos(b)", "sqrt(a)*cos(b)", pytest.param("2*a*cos(b) + 1", marks=pytest.mark.long)]
)
def test_nothing_superfluous_is_left(law: str) -> None:
    """In (c + f)(d + g) + p f + q g two constants do not count: what is found has none of them."""
    x = points(200, 2, 0.5, 2.5)
    expression = sympy.sympify(law)
    y = torch.from_numpy(sympy.lambdify(sympy.symbols("a b"), expression, "numpy")(*x.T.numpy()))
    found = symbolic.discover(x, y, names=["a", "b"], budget=300)
    assert found.best.exact and sympy.simplify(found.formula - expression) == 0


def test_given_shapes_are_searched_alone() -> None:
    """Nothing but networks of the shapes that were asked for, and under a loss of the user's."""
    x = points(200, 2)
    y = x[:, 0] * x[:, 1]
    options: dict[str, Any] = {"functions": ["x"], "seeds": [0], "budget": 1e6}
    found = symbolic.discover(x, y, shapes=[[2, 1, 1]], **options)
    assert all("spline" not in law.shape for law in found.front) and not found.best.exact
    found = symbolic.discover(x, y, **options)
    assert found.best.exact and str(found.formula) == "x_1*x_2"
    again = symbolic.discover(x, y, **options, work=found.work + 1)
    assert again.work == found.work and [law.loss for law in again.front] == [law.loss for law in found.front]


@pytest.mark.long
def test_noise_leaves_the_structure() -> None:
    """Of 1% noise: the functions and the plain constants of the law."""
    x = points(1000, 2)
    y = x[:, 0] / x[:, 1] ** 2 * 3
    y = y + 0.01 * y.std() * torch.randn(
        1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = symbolic.discover(x, y, ["a", "b"], functions=["x", "x^2", "1/x", "1/x^2", "exp"], work=260)
    a, b = sympy.symbols("a b")
    coefficient = sympy.simplify(found.formula * b**2 / a)
    assert coefficient.is_number and math.isclose(float(coefficient), 3, rel_tol=0.01), found.formula


@pytest.mark.long
def test_few_rows_and_few_functions() -> None:
    """Twelve rows; functions that no curve can be; coordinates that are constant: an answer, no error."""
    x = points(12, 2)
    found = symbolic.discover(x, 3 * x[:, 0] * x[:, 1], functions=["x", "x^2"], work=70)
    assert found.best.loss < 1.0 and found.structures > 0
    for name in ("abs", "sgn"):
        assert symbolic.discover(points(60, 2), points(60, 2)[:, 0] ** 2, functions=[name], work=45).front
    same = torch.cat((points(100, 1), 2 * points(100, 1)), 1)  # their ratio is constant
    found = symbolic.discover(same, same[:, 0] ** 2, functions=["x", "x^2"], work=70)
    assert found.best.exact


@pytest.mark.long
def test_six_inputs_two_of_them_idle() -> None:
    """A product of two inputs among sums, 2% noise: its functions, and constants to within a few per cent."""
    x = points(1000, 6, -1.0, 1.0)
    y = x[:, 0] ** 2 + torch.sin(math.pi * x[:, 1]) + x[:, 2] * x[:, 3]
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = symbolic.discover(x, y + 0.02 * y.std() * noise, list("abcdef"), work=350)
    a, b, c, d = sympy.symbols("a b c d")
    assert found.formula.free_symbols == {a, b, c, d}
    difference = sympy.expand(found.formula - (a**2 + sympy.sin(sympy.pi * b) + c * d))
    values = sympy.lambdify([a, b, c, d], difference, "numpy")(*x[:, :4].T.numpy())
    assert abs(values).max() < 0.03, found.formula
