"""discover: laws from data, what it says of those it cannot trust, and what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels import KAN, symbolic
from kan_kernels.symbolic.descent import curvature_of
from kan_kernels.symbolic.discovery import constants, inputs, networks, present, propose
from kan_kernels.symbolic.discovery.form import Form, Term, evaluate
from kan_kernels.symbolic.discovery.joint import Rows, inside, settled
from kan_kernels.symbolic.discovery.simplify import cleaned
from kan_kernels.training import fit

sympy = pytest.importorskip("sympy")

PRODUCT = Form(
    2,
    (
        (((Term(0, "sin"), Term(1, "x^2")),), ((Term(0, "x"),), (Term(0, "exp"), Term(1, "tanh")))),
        (((Term(0, "exp"), Term(1, "x")),), ((Term(0, "x"),),)),
    ),
)


def points(count: int = 200, inputs: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, inputs, generator=generator, dtype=torch.float64) * 2 - 1


def constants_of(form: Form, seed: int = 0) -> Tensor:
    return torch.randn(form.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_derivatives_of_a_form() -> None:
    """By every constant, with products and nodes that two terms read, against differences."""
    x, theta = points(20), constants_of(PRODUCT)
    every = torch.ones(PRODUCT.size, dtype=torch.bool)
    value, slope = evaluate(PRODUCT, theta, x, every)
    assert value.shape == (20, 2) and slope.shape == (20, 2, PRODUCT.size)
    for n in range(PRODUCT.size):
        step = torch.zeros_like(theta)
        step[n] = 1e-6
        high, low = (evaluate(PRODUCT, theta + s * step, x)[0] for s in (1, -1))
        torch.testing.assert_close(slope[:, :, n], (high - low) / 2e-6, rtol=1e-6, atol=1e-6)
    some = every.clone()
    some[::3] = False
    assert torch.equal(evaluate(PRODUCT, theta, x, some)[1], slope[:, :, some])


def test_a_form_three_times() -> None:
    """As a form, as a KAN and as sympy expressions: the same numbers."""
    x, theta = points(20), constants_of(PRODUCT)
    value = evaluate(PRODUCT, theta, x)[0]
    with torch.no_grad():
        torch.testing.assert_close(present.model_of(PRODUCT, theta)(x), value, rtol=1e-12, atol=1e-12)
    expressions = present.expressions(PRODUCT, theta, ["a", "b"])
    function = sympy.lambdify(sympy.symbols("a b"), expressions, "numpy")
    torch.testing.assert_close(torch.stack([torch.as_tensor(v) for v in function(*x.T.numpy())], 1), value)


def test_rewritings_change_no_value() -> None:
    """Gauges, phases, settled scales, terms and nodes that are cleaned away."""
    x = points(20)
    form = Form(2, ((((Term(0, "sin"), Term(1, "x^2")),), ((Term(1, "x"),), (Term(0, "exp"),))),
                    (((Term(0, "log"), Term(1, "x")),),)))  # fmt: skip
    theta = inside(form, constants_of(form, 1), x)
    value = evaluate(form, theta, x)[0]
    assert value.isfinite().all()
    found = list(constants.gauges(form))
    assert len(found) == 3
    for gauge in found:
        torch.testing.assert_close(evaluate(form, gauge.apply(theta, 1.7), x)[0], value)
    torch.testing.assert_close(evaluate(form, settled(form, theta), x)[0], value)
    theta[1:3] = torch.tensor([2.0, 5.0])  # a phase of more than one period
    theta = inside(form, theta, x)
    value = evaluate(form, theta, x)[0]
    turned = constants.turned(form, theta)
    assert abs(float(turned[2])) <= math.pi / 2
    torch.testing.assert_close(evaluate(form, turned, x)[0], value)
    slots = [slot for slot in PRODUCT.slots() if slot.term >= 0]
    for slot in slots:
        theta = constants_of(PRODUCT)
        theta[slot.at + 2] = 0.0
        smaller, left = cleaned(PRODUCT, theta)
        assert smaller.size < PRODUCT.size
        torch.testing.assert_close(evaluate(smaller, left, x)[0], evaluate(PRODUCT, theta, x)[0])


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [(3.1416, 1e-3, "pi"), (1.5708, 1e-4, "pi/2"), (0.3334, 1e-3, "1/3"), (2.02, 0.05, "2"),
     (1e-5, 1e-4, "0"), (0.7421, 1e-3, None), (2.2, 1.0, None),
     (-0.5, 1e-6, "-1/2"), (137.0, 1e-9, "137"), (0.49, 0.2, None)],
)  # fmt: skip
def test_plain_numbers(value: float, error: float, expected: str | None) -> None:
    """A number within the error, unless the error is so large that any number would have one."""
    found = constants.plain(value, error)
    assert (None if found is None else str(present.number(found.value, sympy))) == expected


def test_curvature_of_losses() -> None:
    """Of cross entropy the Hessian by the logits, of an absolute error a little, and never a negative one."""
    p = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    gradient, matrix = curvature_of(torch.nn.functional.cross_entropy, p, y)
    s = p.softmax(1)
    want = (torch.diag_embed(s) - s[:, :, None] * s[:, None]) / 7
    torch.testing.assert_close(gradient, (s - torch.nn.functional.one_hot(y)) / 7)
    torch.testing.assert_close(matrix, want, rtol=1e-2, atol=1e-3)
    assert torch.linalg.eigvalsh(matrix).min() > 0
    _, matrix = curvature_of(torch.nn.functional.l1_loss, p, torch.zeros_like(p))
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_finds_a_law(tmp_path: Path) -> None:
    """Exactly, the same again for the same work, from a checkpoint too; the front, the table, the picture."""
    x = points(300)
    y = (torch.sin(2 * x[:, 0]) + x[:, 1] ** 2).exp()
    options: dict[str, Any] = {
        "names": ["a", "b"],
        "functions": ["x", "x^2", "sin", "exp"],
        "seeds": range(4),
    }
    path = tmp_path / "search.pt"
    found = symbolic.discover(x.numpy(), y.numpy(), **options, budget=1e6, checkpoint=path)
    a, b = sympy.symbols("a b")
    assert found.stopped == "exact" and found.best.exact and not found.best.worse_than_network
    assert sympy.simplify(found.formula - sympy.exp(sympy.sin(2 * a) + b**2)) == 0
    new = points(100, seed=1)
    with torch.no_grad():
        error = found.model(new)[:, 0] - (torch.sin(2 * new[:, 0]) + new[:, 1] ** 2).exp()
    assert error.abs().max() < 1e-12
    losses = [law.loss for law in found.front]
    assert losses == sorted(losses, reverse=True) and len(found.front) > 1
    assert "exp(b**2 + sin(2*a))" in str(found) and "an exact formula was found" in str(found)
    again = symbolic.discover(x, y, **options, work=found.work)
    assert [law.formula for law in again.front] == [law.formula for law in found.front]
    assert [law.loss for law in again.front] == losses
    short = symbolic.discover(x, y, **options, work=6)
    assert short.stopped == "work" and short.work == 6
    resumed = symbolic.discover(x, y, **options, work=found.work, checkpoint=path, resume=True)
    assert resumed.formula == found.formula
    with pytest.raises(ValueError, match=r"checkpoint: .* is of other data"):
        symbolic.discover(x, y + 1, **options, checkpoint=path, resume=True)
    pytest.importorskip("matplotlib")
    assert found.plot().axes[0].get_yscale() == "log"


def test_says_what_it_could_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time: a constant, and that no network was read. Lines alone: worse than the network, and marked.
    Ctrl-C: what was found until then.
    """
    x = points(200)
    y = (3 * x[:, 0] * x[:, 1]).sin()
    found = symbolic.discover(x, y, budget=0)
    assert found.stopped == "budget" and found.networks == 0 and "no network was trained" in str(found)
    options: dict[str, Any] = {"functions": ["x"], "shapes": [[2, 2, 1]], "seeds": [0], "budget": 1e6}
    found = symbolic.discover(x, x[:, 0] ** 2 + x[:, 1], **options)
    worse = [law for law in found.front if law.worse_than_network]
    assert worse and not found.best.exact and found.best.loss > 0.1 and "! " in str(found)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in ("networks.coarse", "networks.grids.update_grid", "reading.choices"):
        with monkeypatch.context() as patch:
            patch.setattr(f"kan_kernels.symbolic.discovery.{place}", interrupt)
            found = symbolic.discover(x, 2 * x[:, 0] + y, **options)
        assert found.stopped == "interrupted" and found.best.shape == "linear"
        assert found.networks == (place == "reading.choices")


def test_single_precision() -> None:
    """What float32 leaves of y is rounding too: plain constants, and the formula is exact."""
    x = torch.linspace(-1, 1, 60)
    found = symbolic.discover(x, 3 * x + 1, names=["t"], budget=1e6)
    assert str(found.formula) == "3*t + 1" and found.best.exact
    noisy = 3 * x + 1 + 1e-4 * torch.randn(60)
    found = symbolic.discover(x, noisy, shapes=[[1, 1]], functions=["x"], work=60)
    assert not found.best.exact


def test_classes() -> None:
    """Under cross entropy: the border of two classes that overlap, so that no loss goes to 0 without end."""
    x = points(400)
    beyond = x[:, 0] ** 2 + x[:, 1] - 0.3
    draw = torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    found = symbolic.discover(
        x, (draw < torch.sigmoid(6 * beyond)).long(), loss=torch.nn.functional.cross_entropy, shapes=[[2, 2]],
        functions=["x", "x^2"], seeds=[0], budget=1e6,
    )  # fmt: skip
    with torch.no_grad():
        right = (found.model(x).argmax(1) == (beyond > 0)).double().mean()
    assert len(found.formula) == 2 and right > 0.95


def test_networks_of_classes_that_can_be_told_apart() -> None:
    """More steps leave the loss on rows that were held back where it is least; without those it grows."""
    torch.manual_seed(1)
    x = points(200)
    label = (x[:, 0] ** 2 + x[:, 1] > 0.3).long()
    cross_entropy = torch.nn.functional.cross_entropy
    rows = [Rows(x[part], label[part], cross_entropy, 0.0) for part in (slice(120), slice(120, None))]
    zero, one = torch.zeros(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype)
    data = networks.Data(rows[0], rows[1], zero, one, zero, one, 2, 0.0, zero)
    first = KAN([2, 2, 2], dtype=x.dtype)
    found = []
    for steps in (3, 12):
        model = copy.deepcopy(first)
        networks.train(data, model, steps)
        found.append(data.loss(model, rows[1]))
    assert found[1] <= found[0] < 0.5
    fit(first, (x[:120], label[:120]), steps=12, loss=cross_entropy, progress=False)
    assert data.loss(first, rows[1]) > 2 * found[1]


def test_rows_that_count() -> None:
    """Under cross entropy those near the border are drawn often, the others hardly; of squares each once."""
    x = points(400)
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(model.weight, 20.0)
    trained = networks.Trained(0, 0.0, 0.0, model)  # type: ignore[arg-type]
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    for loss, label in ((binary, (x.sum(1) > 0).double()), (torch.nn.functional.mse_loss, x[:, 0])):
        data = inputs.split(*inputs.rows_of(x, label, loss), loss, 0)
        rows = propose.weighed(data, trained)
        if loss is binary:
            score = model(data.units(data.train.x)).abs()[:, 0]
            assert score[rows].median() < 4 < 10 < score.median() and len(rows.unique()) > 30
        else:
            assert torch.equal(rows, torch.arange(300))


X, ONES = points(40), torch.ones(40)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: symbolic.discover(X, X[:, 0] * math.nan), ValueError, "y: sample 0 is not finite"),
        (lambda: symbolic.discover(X * ONES[0] / 0, X[:, 0]), ValueError, "x: sample 0 is not finite"),
        (lambda: symbolic.discover(X * 0, X[:, 0]), ValueError, "x: column 0 is constant"),
        (lambda: symbolic.discover(X[:1], X[:1, 0]), ValueError, "x: got 1 samples"),
        (lambda: symbolic.discover(X, X.repeat(1, 10)), ValueError, "y: got 20 outputs of 40 samples"),
        (lambda: symbolic.discover(X, X[:9, 0]), ValueError, "y: got shape"),
        (lambda: symbolic.discover(X, X[:, 0], ["a", "2 b"]), ValueError, "names: got '2 b'"),
        (lambda: symbolic.discover(X, X[:, 0], ["a"]), ValueError, "names: got"),
        (lambda: symbolic.discover(X, X[:, 0], loss=lambda p, y: p), ValueError, "loss: got shape"),
        (lambda: symbolic.discover(X, X[:, 0], loss=lambda p, y: 0 * y.sum()), ValueError, "loss: its value"),
        (lambda: symbolic.discover(X, X[:, 0], seeds=[]), ValueError, "seeds: got"),
        (lambda: symbolic.discover(X, X[:, 0], seeds=3), TypeError, "seeds: got 3"),
        (lambda: symbolic.discover(X, X[:, 0], shapes=[[3, 1]]), ValueError, "shapes: got"),
        (lambda: symbolic.discover(X, X[:, 0], shapes=[[2, (0, 0), 1]]), ValueError, "at least one node"),
        (lambda: symbolic.discover(X, X[:, 0], shapes="all"), ValueError, "shapes: got 'all'"),
        (lambda: symbolic.discover(X, X[:, 0], functions=["sinus"]), ValueError, "functions: unknown"),
        (lambda: symbolic.discover(X, X[:, 0], functions="sin"), TypeError, "functions: got 'sin'"),
        (lambda: symbolic.discover(X, X[:, 0] * 1e200), ValueError, "y: the largest number of column 0 is"),
        (lambda: symbolic.discover(X * 1e-90, X[:, 0]), ValueError, "x: the largest number of column 0 is"),
        (lambda: symbolic.discover(X, X[:, 0], budget=-1), ValueError, "budget: got -1"),
        (lambda: symbolic.discover(X, X[:, 0], resume=True), ValueError, "resume: got True without"),
    ],
)  # fmt: skip
def test_refusals(call: Any, error: type[Exception], match: str) -> None:
    """Named errors, before anything is trained."""
    with pytest.raises(error, match=match):
        call()


def test_losses_are_told_apart() -> None:
    """By what they make of predictions: names say nothing of two lambdas, or of options."""
    y = points(40)[:, :1]
    losses = [lambda p, y, n=n: (p - y).abs().pow(n).mean() for n in (1, 2)]
    losses += [torch.nn.HuberLoss(delta=delta) for delta in (0.5, 50.0)]
    values = [inputs.values_of(loss, y, 1) for loss in losses]
    assert len({tuple(each) for each in values}) == 4 and values[0] == inputs.values_of(losses[0], y, 1)
    assert inputs.values_of(None, y, 1) == []
    strict = lambda p, y: -torch.distributions.Exponential(p.exp(), validate_args=True).log_prob(y).mean()  # noqa: E731
    assert inputs.values_of(strict, y.abs(), 1)[-1] == "ValueError"
    x, _, _, eps = inputs.rows_of(y.tolist(), y.tolist(), None)
    assert torch.equal(x, y) and eps == torch.finfo(torch.float64).eps


@pytest.mark.long
def test_seven_laws() -> None:
    """Each from one draw of the data, as benchmarks.laws does for ten; and a product under noise."""
    from benchmarks import laws

    for law in laws.LAWS:
        if law.noise:  # depends on the clock: below, with a shape and no clock
            continue
        run = laws.run(law, 100)
        assert run["found"], run
    x = points(1000, 6)
    y = x[:, 0] ** 2 + torch.sin(math.pi * x[:, 1]) + x[:, 2] * x[:, 3]
    y += 0.02 * y.std() * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = symbolic.discover(x, y, list("abcdef"), budget=1e6, shapes=[[6, (1, 1), 1]])
    a, b, c, d = sympy.symbols("a b c d")
    assert sympy.simplify(found.formula - (a**2 + sympy.sin(sympy.pi * b) + c * d)) == 0
