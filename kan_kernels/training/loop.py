"""`fit`: the training loop of the paper's workflow."""

import contextlib
import functools
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .. import grids, replicas
from .._core import checks, threads
from ..composition import layers_of
from ..nn.symbolic_edges import SymbolicEdges
from ..regularization import _check_penalty
from ..regularization import regularization as penalty
from . import equation
from .data import Batches, TensorBatches, split
from .history import History
from .objective import HISTORY_SIZE, Minimizer, Objective, builder
from .run import Run


def fit(
    model: nn.Module,
    data: object = None,
    *,
    objective: Callable[..., Tensor] | None = None,
    points: Tensor | Callable[[nn.Module], Tensor] | None = None,
    resample_at: Iterable[int] = (),
    steps: int = 100,
    optimizer: str | Callable[[list[nn.Parameter]], Optimizer] = "lbfgs",
    lr: float | Callable[[int], float] | None = None,
    history_size: int = HISTORY_SIZE,
    batch_size: int | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    lamb: float = 0.0,
    regularization: Mapping[str, Any] | None = None,
    update_grid_at: Iterable[int] = (),
    update_grid: Mapping[str, Any] | None = None,
    refine_at: Mapping[int, int] | None = None,
    metrics: Mapping[str, Callable[[Tensor, Tensor], Any]] | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool | str | os.PathLike[str] = False,
    seed: int = 0,
    progress: bool | None = None,
    group: Any = None,
) -> History:
    """Train a model in place.

    A step of LBFGS is torch's and pykan's: up to 20 iterations and 25 evaluations, with a strong-Wolfe line
    search and without tolerances that would end it early. What it minimises is scaled up as it shrinks, so
    that it does not stall far above machine precision, as torch's does alone.

    Args:
        model: any module; grids and regularisation need a KAN or KANLinear.
        data: (x, y), {"train": (x, y), "test": (x, y)}, pykan's dataset, or a DataLoader of (x, y) in place
            of a pair, or a `kan_kernels.data.Dataset`. Tensors must be finite and where the model is.
        objective: in place of data, a function of the model that returns a scalar tensor. It may use
            derivatives of the model of any order, by `torch.autograd.grad` with create_graph or `torch.func`,
            and several sets of points. The model may be a module that has a KAN inside of it.
        points: (..., in) the input rows of that KAN: what penalties and grid updates look at. Or a function
            of the model that returns them, at the start and before the steps `resample_at`; the objective and
            the metrics are then functions of (model, points).
        resample_at: steps before which a function `points` is called again; the optimizer is built anew.
        steps: of the optimizer, in total (a resumed training included).
        optimizer: "lbfgs", "adam", "adamw", or what makes an optimizer of a list of parameters. It is built
            anew whenever the grids change, as they change the parameters.
        lr: a number, or a function of the step; 1 for LBFGS and 0.01 for Adam(W) by default.
        history_size: how many steps "lbfgs" stores, which is what it knows of the curvature; 10 as in
            pykan. Each holds two vectors of all parameters.
        batch_size: rows of a step, shuffled by the seed; None takes all.
        loss: of (prediction, y), a scalar; the mean squared error by default.
        lamb, regularization: the weight of `kan_kernels.regularization.regularization`, and its options.
        update_grid_at, update_grid: steps before which `kan_kernels.grids.update_grid` fits the knots to the
            data, and its options; from a loader it sees the first 4096 rows.
        refine_at: {step: grid_size}, where `kan_kernels.grids.refine` makes the grids finer before the step.
        metrics: {name: function of (prediction, y)}, on all of the test data, or else of the training data,
            at once; with an objective, functions of what it is a function of.
        evaluate_every: steps between evaluations; 1 for LBFGS and 10 for others by default. Losses are looked
            at, and the state to fall back to is kept, as often.
        patience: stop after so many evaluations without a better test loss (training loss without test data),
            and in any case end with the best state seen.
        checkpoint, checkpoint_every: a file that `resume` continues from, written at the first evaluation
            after so many steps, of the state at the one before, and at the end. It holds tensors and plain
            data only: `torch.load(path, weights_only=True)`.
        resume: a file of `fit`'s to continue from, or True for that of `checkpoint`, which need not exist
            yet; an event of the history says what was done. Mini-batches and results are those of a training
            without the break, save that a DataLoader starts a new epoch and torch's random numbers, as in
            dropout, go on as they are. patience counts from here if there was none before.
        seed: of the shuffling.
        progress: a progress bar (needs tqdm); None shows one on a terminal, if tqdm is there.
        group: where several ranks run, for the changes of grids: see `kan_kernels.grids.update_grid`. Of a
            model in a DistributedDataParallel, losses and metrics are means over its ranks, so that all stop
            and fall back together, and the first writes the checkpoint.

    Returns:
        The history. When the loss or a weight is no longer finite (with a warning), or at KeyboardInterrupt,
        training ends and the model is put back to the last good state; `History.stopped` says so.

    Raises:
        TypeError, ValueError: naming the argument, before anything changes.
        ModuleNotFoundError: progress=True without tqdm.

    Example:
        >>> x = torch.linspace(-1, 1, 32)[:, None]
        >>> history = fit(KAN([1, 1]), (x, x**2), steps=3)
        >>> history.train_loss[-1] < history.train_loss[0]
        True
        >>> def residual(model):  # of u' = u with u(0) = 1
        ...     u, slope = torch.func.jvp(model, (x,), (torch.ones_like(x),))
        ...     return (slope - u).square().mean() + (model(x.new_zeros(1, 1)) - 1).square().sum()
        >>> fit(KAN([1, 1]), objective=residual, points=x, steps=3, update_grid_at=[1]).events
        [{'step': 1, 'kind': 'grid_update'}]
    """
    steps = checks.integer("steps", steps, 1)
    history_size = checks.integer("history_size", history_size, 1)
    checkpoint_every = checks.integer("checkpoint_every", checkpoint_every, 1)
    seed = checks.integer("seed", seed, 0)
    batch_size = _integer_or_none("batch_size", batch_size)
    evaluate_every = _integer_or_none("evaluate_every", evaluate_every)
    patience = _integer_or_none("patience", patience)
    if progress is not None:
        progress = checks.boolean("progress", progress)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model: no parameter requires a gradient, so there is nothing to train")
    lamb = checks.nonnegative("lamb", lamb)
    arguments = "(prediction, y)" if objective is None else "the model"
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: got {type(metrics).__name__}, expected {{name: function of {arguments}}}")
    if "" in (metrics or ()):
        raise ValueError("metrics: got the name '', expected others")
    functions = {"loss": loss, **{f"metrics[{name!r}]": metric for name, metric in (metrics or {}).items()}}
    for name, function in functions.items():
        if not callable(function) and (name != "loss" or function is not None):
            raise TypeError(f"{name}: got {function!r}, expected a function of {arguments}")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"checkpoint: there is no folder {str(path.parent)!r}")
    if path is not None and path.is_dir():
        raise ValueError(f"checkpoint: {str(path)!r} is a folder, expected a file")
    source = _source(resume, path)
    update_grid_at = _steps("update_grid_at", update_grid_at)
    update_options = _mapping("update_grid", update_grid, "{option: value}")
    penalty_options = _mapping("regularization", regularization, "{option: value}")
    refine_at = _mapping("refine_at", refine_at, "{step: grid_size}")
    if "group" in update_options:
        raise ValueError("update_grid: got the option 'group', which is an argument of fit itself")
    _check_options("update_grid", update_options, grids.update_grid)
    for name, value in update_options.items():
        checks.nonnegative(f"update_grid: {name}", value, 1.0 if name == "grid_eps" else math.inf)
    _check_options("regularization", penalty_options, penalty)
    weights = {name: value for name, value in penalty_options.items() if name != "kind"}
    _check_penalty(penalty_options.get("kind", "l1"), weights)
    resample_at = _steps("resample_at", resample_at)
    train: Batches
    test: Batches | None
    goal: Objective
    if objective is None:
        if points is not None or resample_at:
            raise ValueError("points, resample_at: got them without objective, expected them beside one")
        train, test = split(data, model, batch_size, seed)
        goal = Objective(model, loss, lamb, penalty_options)
        if lamb > 0 and penalty_options.get("kind") in ("std", "std_normalized") and batch_size is not None:
            _check_last_batch(train, batch_size, steps)
    else:
        given = {"data": data, "loss": loss, "batch_size": batch_size}
        on_points = (lamb > 0 and penalty_options.get("kind") != "coefficient") or bool(update_grid_at)
        train, test = equation.points_of(model, objective, points, resample_at, given, on_points), None
        goal = equation.Equation(model, objective, train, lamb, penalty_options)
    changes = _grid_changes(goal.kan_of, model, update_grid_at, refine_at, resample_at)
    ranks = _ranks(model, group, changes, path, lamb > 0)
    build = builder(optimizer, history_size)
    several = ranks is not None or replicas.is_spread(model)
    minimizer = None if several and optimizer == "lbfgs" else Minimizer(model, build, lr)
    if minimizer is None or (several and minimizer.lbfgs):
        raise ValueError(
            "optimizer: LBFGS follows the loss of each rank, on which ranks differ; expected 'adam', 'adamw' "
            "or another that looks at gradients only, for a model spread over ranks"
        )
    run = Run(
        minimizer=minimizer,
        objective=goal,
        train=train,
        test=test,
        grid_changes=changes,
        group=group if ranks is None else ranks,
        ranks=ranks,
        update_options=update_options,
        metrics=dict(metrics or {}),
        evaluate_every=evaluate_every or (1 if minimizer.lbfgs else 10),
        patience=patience,
        path=path,
        checkpoint_every=checkpoint_every,
        recipe={
            "optimizer": optimizer if isinstance(optimizer, str) else type(minimizer.optimizer).__name__,
            "history_size": history_size if optimizer == "lbfgs" else None,
            "batch_size": batch_size,
            "seed": seed,
            "lamb > 0": lamb > 0,
            "test data": test is not None,
            "metrics": sorted(map(str, metrics or ())),
            "objective": objective is not None,
        },
        open_bar=_bar(progress),
    )
    with threads.few(_in_formulas(model, train)):
        run.prepare(source, steps, given=not isinstance(resume, bool))
        return run.to(steps)


def _in_formulas(model: nn.Module, batches: Any) -> int:
    """Return how many numbers formulas make of a batch, by torch's own functions; many, where none does."""
    edges = sum(len(module.names) for module in model.modules() if isinstance(module, SymbolicEdges))
    if edges == 0 or not isinstance(batches, TensorBatches):
        return threads.SERIAL + 1
    return edges * min(len(batches.x), batches.batch_size or len(batches.x))


def _check_last_batch(batches: Batches, batch_size: int, steps: int) -> None:
    """Raise where the last rows of an epoch are too few for a standard deviation."""
    if not isinstance(batches, TensorBatches):
        return
    whole, rest = divmod(len(batches.x), batch_size)
    if batch_size == 1 or (rest == 1 and steps > whole):
        raise ValueError(
            f"batch_size: got {batch_size} for {len(batches.x)} rows, of which a batch gets one; the penalty "
            "is of standard deviations, expected 2 rows or more in each"
        )


def _mapping(name: str, value: object, expected: str) -> dict[Any, Any]:
    if value and not isinstance(value, Mapping):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    return dict(value) if isinstance(value, Mapping) else {}


def _steps(name: str, value: object) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: got {value!r}, expected steps")
    return list(value)


def _integer_or_none(name: str, value: object) -> int | None:
    return None if value is None else checks.integer(name, value, 1)


def _ranks(
    model: nn.Module,
    group: Any,
    changes: dict[int, list[dict[str, Any]]],
    path: Path | None,
    penalised: bool,
) -> Any:
    """Return the process group that the model is spread over, or None; refuse what its ranks cannot do."""
    sharded, spread = replicas.is_sharded(model), replicas.unwrapped(model) is not model
    if sharded and penalised:
        raise ValueError(
            "lamb: the penalty is of whole weights, expected 0 for a model whose parameters are sharded over "
            "ranks"
        )
    inside = not spread and replicas.wraps_inside(model)
    if not (sharded or spread or inside):
        if changes:
            replicas.resolve(model, group)
        return None
    refined = any(event["kind"] == "refine" for events in changes.values() for event in events)
    if refined and replicas.is_wrapped(model):
        raise ValueError(
            "refine_at: replaces parameters that DistributedDataParallel and fully_shard hold, expected "
            "none; use kan_kernels.grids.refine before the model is wrapped, and fit once for each grid size"
        )
    ranks = replicas.resolve(model, group)
    if path is not None and replicas.is_spread(model):
        raise ValueError(
            "checkpoint: holds whole models, expected none for one whose parameters are sharded over ranks; "
            "torch.distributed.checkpoint saves those"
        )
    return ranks


def _source(resume: object, checkpoint: Path | None) -> Path | None:
    """Return the file to continue from, which may be missing where it is the checkpoint's, or None."""
    if resume is False:
        return None
    if resume is True:
        if checkpoint is None:
            raise ValueError("resume: got True without checkpoint, expected one, or the file to resume from")
        return checkpoint
    if not isinstance(resume, (str, os.PathLike)):
        raise TypeError(f"resume: got {resume!r}, expected True, False or the path of a file that fit wrote")
    if not Path(resume).is_file():
        raise ValueError(f"resume: there is no file {str(resume)!r}, expected one that fit wrote")
    return Path(resume)


def _grid_changes(
    kan_of: Callable[[nn.Module], nn.Module],
    model: nn.Module,
    update_at: Iterable[int],
    refine_at: Mapping[int, int],
    resample_at: Iterable[int],
) -> dict[int, list[dict[str, Any]]]:
    """Return the events before each step: other points, then refinements, then grid updates."""
    draws = {checks.integer("resample_at: step", step, 0) for step in resample_at}
    changes: dict[int, list[dict[str, Any]]] = {
        step: [{"step": step, "kind": "resample"}] for step in draws if step > 0
    }
    for step, size in refine_at.items():
        step = checks.integer("refine_at: step", step, 0)
        size = checks.integer(f"refine_at[{step}]", size, 1)
        changes.setdefault(step, []).append({"step": step, "kind": "refine", "grid_size": size})
    for step in update_at:
        step = checks.integer("update_grid_at: step", step, 0)
        changes.setdefault(step, []).append({"step": step, "kind": "grid_update"})
    if any(event["kind"] != "resample" for events in changes.values() for event in events):
        layers_of(replicas.unwrapped(kan_of(model)), sharded=True)
    return dict(sorted(changes.items()))


def _check_options(name: str, options: dict[str, Any], function: Callable[..., Any]) -> None:
    known = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            known = [n for n in known if n != "group"]  # fit's own argument
            raise ValueError(f"{name}: got the option {option!r}, expected some of {', '.join(known)}")


def _bar(progress: bool | None) -> Callable[..., Any]:
    """Return what opens a tqdm bar, or none."""
    there = importlib.util.find_spec("tqdm") is not None
    if progress is None:
        progress = there and sys.stderr.isatty()
    if not progress:
        return lambda total: contextlib.nullcontext()
    if not there:
        raise ModuleNotFoundError("progress=True needs tqdm: pip install tqdm")
    from tqdm.auto import tqdm

    return functools.partial(tqdm, unit="step", leave=True)
