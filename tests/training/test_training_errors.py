"""What fit cannot train on is an error before anything changes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fit_cases import F64, data, make, same
from harness import DEVICE
from kan_kernels import KANLinear
from kan_kernels.training import fit


@pytest.mark.parametrize(
    "change,error,match",
    [
        ({"data": 3}, TypeError, "data: train is int"),
        ({"data": {"training": None}}, ValueError, r"data: got a dict with the keys \['training'\]"),
        ({"y": lambda y: y[:-1]}, ValueError, "data: train has 200 samples of x and 199 of y"),
        ({"y": lambda y: y[:, 0]}, ValueError, r"y has shape \(200,\), expected \(200, 1\)"),
        ({"y": lambda y: (y[:, 0] > 1).long(), "net": [2, 3]}, ValueError,
         r"y has shape \(200,\), expected \(200, 3\) like the prediction, "
         r"or class indices of shape \(200,\) with loss=torch.nn.functional.cross_entropy"),
        ({"y": lambda y: (y > 1).long(), "net": [2, 3]}, ValueError, "functional.cross_entropy"),
        ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, ValueError, "expected at least one sample"),
        ({"x": lambda x: x.index_fill(0, torch.tensor([7], device=DEVICE), math.nan)}, ValueError,
         "data: train x has a value that is not finite in sample 7"),
        ({"y": lambda y: y / 0}, ValueError, "data: train y has a value that is not finite in sample 0"),
        ({"x": lambda x: x.tolist()}, TypeError, "data: train x is list"),
        ({"steps": 0}, ValueError, "steps: got 0"),
        ({"steps": 2.5}, TypeError, "steps: got 2.5"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer: got 'sgd'"),
        ({"history_size": 0}, ValueError, "history_size: got 0"),
        ({"history_size": None}, TypeError, "history_size: got None"),
        ({"history_size": 20, "optimizer": "adam"}, ValueError,
         "history_size: got 20 with optimizer='adam', expected it with 'lbfgs' only"),
        ({"lr": -1.0}, ValueError, "lr: got -1.0"),
        ({"lamb": -1.0}, ValueError, "lamb: got -1.0"),
        ({"lr": True, "optimizer": "adam"}, TypeError, "lr: got True, expected a positive number"),
        ({"lamb": "1"}, TypeError, "lamb: got '1'"),
        ({"loss": "mse"}, TypeError, r"loss: got 'mse', expected a function of \(prediction, y\)"),
        ({"metrics": {"a": 3}}, TypeError, r"metrics\['a'\]: got 3, expected a function"),
        ({"metrics": [abs]}, TypeError, "metrics: got list"),
        ({"metrics": {"": abs}}, ValueError, "metrics: got the name ''"),
        ({"metrics": {"gap": lambda p, y: p - y}}, ValueError, r"metrics\['gap'\]: returned shape \(200"),
        ({"loss": lambda p, y: p.detach().sum()}, ValueError, "loss: its value has no gradient"),
        ({"optimizer": lambda parameters: None}, TypeError, "optimizer: returned NoneType"),
        ({"regularization": "l1"}, TypeError, "regularization: got 'l1', expected {option: value}"),
        ({"update_grid_at": 1}, TypeError, "update_grid_at: got 1, expected steps"),
        ({"refine_at": [(1, 10)]}, TypeError, r"refine_at: got \[\(1, 10\)\], expected {step: grid_size}"),
        ({"lamb": 0.1, "regularization": {"kind": "std"}, "batch_size": 199}, ValueError,
         "batch_size: got 199 for 200 rows"),
        ({"patience": 0}, ValueError, "patience: got 0"),
        ({"refine_at": {3: 0}}, ValueError, r"refine_at\[3\]: got 0"),
        ({"refine_at": {3: 4}}, ValueError, r"refine_at\[3\]: got 4, but the grids have 5 cells"),
        ({"refine_at": {3: 8, 1: 10}}, ValueError, r"refine_at\[3\]: got 8, but the grids have 10 cells"),
        ({"update_grid": {"eps": 0.1}}, ValueError, "update_grid: got the option 'eps'"),
        ({"update_grid": {"grid_eps": 2.0}}, ValueError, "update_grid: grid_eps: got 2.0"),
        ({"update_grid": {"group": "local"}}, ValueError, "an argument of fit itself"),
        ({"regularization": {"kind": "l3"}}, ValueError, "kind: got 'l3'"),
        ({"regularization": {"lamb_l1": -1}}, ValueError, "lamb_l1: got -1"),
        ({"lr": lambda step: -0.1, "optimizer": "adam"}, ValueError, r"lr\(0\): got -0.1"),
        ({"regularization": {"mu": 1.0}}, ValueError, "regularization: got the option 'mu'"),
        ({"lamb": 1.0, "update_grid_at": [0], "regularization": {"kind": "l3"}}, ValueError,
         "kind: got 'l3'"),
        ({"update_grid_at": [0], "loss": lambda p, y: (p - y) ** 2}, ValueError,
         r"loss: got shape \(200, 1\)"),
        ({"data": {"train_input": 0, "test_input": 0}}, ValueError, "data: got a dict without 'train_label'"),
        ({"update_grid_at": [-1]}, ValueError, "update_grid_at: step: got -1"),
        ({"resume": True}, ValueError, "resume: got True without checkpoint"),
        ({"resume": 1}, TypeError, "resume: got 1, expected True, False or the path"),
        ({"resume": None}, TypeError, "resume: got None"),
        ({"checkpoint": "/nowhere/at/all.pt"}, ValueError, "checkpoint: there is no folder"),
        ({"loss": lambda p, y: (p - y) ** 2}, ValueError, r"loss: got shape \(200, 1\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    x, y = data()
    change = dict(change)
    x, y = change.pop("x", lambda x: x)(x), change.pop("y", lambda y: y)(y)
    net = make(change.pop("net", None))
    before = copy.deepcopy(net)
    with pytest.raises(error, match=match):
        fit(net, change.pop("data", (x, y)), **change)
    assert same(net, before)


def test_other_models_and_frozen_ones() -> None:
    """Any module trains; grids ask for a KAN; a model without trainable parameters is an error."""
    net, (x, y) = nn.Sequential(KANLinear(2, 3), nn.Linear(3, 1)).to(DEVICE, F64), data()
    assert fit(net, (x, y), steps=5).train_loss[-1] < 0.5
    with pytest.raises(TypeError, match="model: got Sequential"):
        fit(net, (x, y), update_grid_at=[0])
    with pytest.raises(TypeError, match="model: got int"):
        fit(3, (x, y))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        fit(net.requires_grad_(False), (x, y))


def test_loader_mistakes() -> None:
    x, y = data(8)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    with pytest.raises(ValueError, match="batch_size: got 4, but the train loader has its own"):
        fit(make(), loader, batch_size=4)
    with pytest.raises(ValueError, match="the train loader is empty"):
        fit(make(), DataLoader(TensorDataset(x[:0], y[:0])), steps=1)
    with pytest.raises(TypeError, match="the train loader gave"):
        fit(make(), DataLoader(TensorDataset(x)), steps=1)
