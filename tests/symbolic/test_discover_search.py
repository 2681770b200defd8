"""discover: what it takes, where it may be broken off, what it shows while it searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels import data, symbolic
from kan_kernels.symbolic.discovery import inputs, laws, networks, reading, search

sympy = pytest.importorskip("sympy")

Y = {"names": ["a", "b"], "functions": ["x", "x^2", "sin"], "budget": 1e6}


def points(count: int = 160, inputs: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, inputs, generator=generator, dtype=torch.float64) * 2 - 1


def summary(found: symbolic.Discovery) -> list[tuple]:
    return [(law.formula, law.loss, law.network, law.seeds) for law in found.front]


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_sets(standardize: bool, dtype: torch.dtype) -> None:
    """In the data's own units and names, whatever the models see; the test rows are not looked at."""
    held = data.from_function(
        lambda x: 3 * x[:, 0] ** 2 + x[:, 1], {"mass": (1, 3), "speed": (-1, 4)}, rows=200,
        standardize=standardize, standardize_outputs=standardize, dtype=dtype,
    )  # fmt: skip
    held.test[0].fill_(torch.nan)
    found = symbolic.discover(held, budget=1e6)
    mass, speed = sympy.symbols("mass speed")
    assert sympy.simplify(found.formula - (3 * mass**2 + speed)) == 0
    assert found.best.exact
    with pytest.raises(ValueError, match="y: got Tensor beside a Dataset"):
        symbolic.discover(held, held.train[1])
    with pytest.raises(TypeError, match="y: got None"):
        symbolic.discover(held.train[0])


def test_data_frames() -> None:
    """Columns give their names, unless others are given; classes of a column stay classes."""
    pandas = pytest.importorskip("pandas")
    x = points()
    frame = pandas.DataFrame(x.numpy(), columns=["u", "v"])
    found = symbolic.discover(frame, pandas.Series(2 * x[:, 0].numpy() - x[:, 1].numpy()), budget=1e6)
    assert str(found.formula) == "2*u - v"
    assert symbolic.discover(frame, frame["u"], names=["p", "q"], budget=1e6).best.names == ("p", "q")
    label = pandas.Series((x[:, 0] > 0).numpy().astype(int))
    options: dict[str, Any] = {"loss": torch.nn.functional.cross_entropy, "functions": ["x"]}
    found = symbolic.discover(frame, label, shapes=[[2, 2]], seeds=[0], work=12, **options)
    assert len(found.formula) == 2
    with pytest.raises(ValueError, match="names: got '1 u'"):
        symbolic.discover(frame.rename(columns={"u": "1 u"}), frame["v"])
    with pytest.raises(TypeError, match=r"x: column 'u' holds '.*', expected numbers"):
        symbolic.discover(frame.astype(str), frame["v"])


@pytest.mark.parametrize("place", ["regressions", pytest.param("networks", marks=pytest.mark.long)])
def test_broken_off_anywhere(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is broken off again and again finds what an unbroken one of the same work does."""
    x = points()
    noise = 0.1 * torch.randn(160, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options: dict[str, Any] = {**Y, "seeds": range(2)}
    if place == "networks":
        options["shapes"] = [[2, 1, 1], [2, (0, 1), 1]]
    monkeypatch.setattr(search.networks, "COARSE", (4, 3))
    monkeypatch.setattr(search.networks, "FINE", ((6, 3),))
    y = (2 * x[:, 0]).sin() + x[:, 1] ** 2 + noise
    work = 130 if place == "networks" else 40
    whole = symbolic.discover(x, y, **options, work=work)
    assert whole.work == work and (whole.networks > 1) == (place == "networks")
    path, ticks = tmp_path / "search.pt", iter(range(10**6))
    tick = search.Search.tick

    def interrupted(self: Any) -> None:
        tick(self)
        if next(ticks) % 9 == 8:
            raise KeyboardInterrupt

    resumed, tries, before = None, 0, -1
    with monkeypatch.context() as patch:
        patch.setattr(search.Search, "tick", interrupted)
        while resumed is None or resumed.stopped == "interrupted":
            resumed = symbolic.discover(x, y, **options, work=work, checkpoint=path, resume=True)
            tries += 1
            done = torch.load(path)["work"]
            if done == before:  # one read takes more work than that: let it
                patch.setattr(search.Search, "tick", tick)
            before = done
    assert tries > 2
    assert resumed.stopped == "work" and resumed.work == work
    assert summary(resumed) == summary(whole)
    assert (resumed.networks, resumed.structures) == (whole.networks, whole.structures)


def test_seeds_that_agree() -> None:
    """Each seed whose network led to a law is counted once; a regression has none."""
    x = points()
    y = (2 * x[:, 0]).sin() + x[:, 1] ** 2
    held = inputs.split(x, y[:, None], 1, 0.0, None, 0)
    reader = reading.Reader(held, laws.Pool(held.exact), [], ("a", "b"), lambda: None)
    form, theta = reading.linear(held)
    for seed in (2, None, 0, 2):
        reader.keep(form, theta, networks.Judged(seed, 1.0, 1.0), "[2, 1]")
    assert reader.pool.best().seeds == (2, 0)
    line = laws.table(reader.pool.front(), reader.pool.best())[1]
    assert line.split()[4] == "2"
    exact = symbolic.discover(x, x[:, 0] * x[:, 1], **Y)
    assert exact.best.seeds == () and exact.networks == 0 < exact.structures


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """The bar shows the best formula so far."""
    pytest.importorskip("tqdm")
    x = points()
    symbolic.discover(x, x[:, 0] ** 2 + 2 * x[:, 1], **Y, progress=True)
    assert "a**2 + 2" in capsys.readouterr().err


def test_an_output_that_is_small_beside_another() -> None:
    """A formula is exact where each output's error is rounding, however small the output."""
    x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    y = torch.stack([1000 * x[:, 0], 1e-3 * x[:, 1].sin()], 1)
    found = symbolic.discover(x, y, work=20, seeds=range(1))
    error = (found.model(x.double()) - y).square().mean(0).sqrt()
    assert not found.best.exact or bool((error < 1e-5 * y.square().mean(0).sqrt()).all())
    assert symbolic.discover(x, torch.stack([x[:, 0], 0 * x[:, 1]], 1), work=20, seeds=range(1)).best.exact


def test_a_law_that_became_constant_has_a_model() -> None:
    """Nothing is left of the layers before a node that reads no other."""
    x = torch.rand(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = symbolic.discover(x, (3 * x[:, 0]).exp(), functions=["0"], seeds=range(1), work=60)
    for law in found.front:
        y = law.model(x)
        assert y.shape == (100, 1) and float(y.std()) == 0.0
        torch.testing.assert_close(float(y[0]), float(law.formula))
