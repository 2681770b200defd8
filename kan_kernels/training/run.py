"""One training: the loop, the states to fall back to, checkpoints."""

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import replicas
from .._core.files import replacing
from ..composition import layers_of
from .data import Batches, Points
from .history import History
from .lbfgs import Vector
from .objective import HISTORY_SIZE, Evaluate, Evaluation, Minimizer, Objective

FORMAT = 1
_BEFORE = {"history_size": HISTORY_SIZE, "objective": False}  # of files from before `fit` knew the names


@dataclass
class Run:
    """The state of a training: what `fit` was asked for, and how far it has come.

    A snapshot is what a checkpoint holds, less the history: step, model, `changed`, and where there is a file
    the minimizer. It is `pending` until the loss there is known, and `good` if that is finite.
    """

    minimizer: Minimizer
    objective: Objective
    train: Batches
    test: Batches | None
    grid_changes: dict[int, list[dict[str, Any]]]
    update_options: dict[str, Any]
    metrics: dict[str, Callable[[Tensor, Tensor], Any]]
    evaluate_every: int
    patience: int | None
    path: Path | None
    checkpoint_every: int
    recipe: dict[str, Any]
    open_bar: Callable[..., Any]
    group: Any = None  # for changes of grids
    ranks: Any = None  # the process group that the model is spread over
    bar: Any = None  # while it is open
    history: History = field(default_factory=History)
    losses: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)  # not looked at yet
    start: int = 0
    changed: int = -1  # the last step whose grid changes were made
    judged: int = -1  # the step of the last snapshot that was compared with the best
    saved: int = 0
    stale: int = 0
    best_value: float = math.inf
    ended: int = 0  # the step that was the reason to stop
    pending: dict[str, Any] | None = None
    good: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    regular: dict[str, Any] | None = None  # what was best before an evaluation at the end of a part

    def prepare(self, source: Path | None, steps: int, given: bool) -> None:
        """Find out what cannot be computed, before anything changes; then take over the checkpoint `source`.

        One that was not `given` by name need not be there.
        """
        self.objective.try_out(*self.train.first())
        if source is not None and (given or source.exists()):
            self.resume(source, steps, "resume" if given else "checkpoint")
            return
        self.check_refinements(self.objective.model, -1)
        if source is not None:
            self.history.events.append({"step": 0, "kind": "not_resumed", "file": str(source)})

    def check_refinements(self, model: nn.Module, changed: int) -> None:
        """Raise ValueError if a refinement after step `changed` makes a grid coarser."""
        events = [e for step, es in self.grid_changes.items() if step > changed for e in es]
        sizes = [(e["step"], e["grid_size"]) for e in events if e["kind"] == "refine"]
        kan = self.objective.kan_of
        layers = layers_of(replicas.unwrapped(kan(model)), sharded=True) if sizes else []
        least = max((layer.grid_size for layer in layers), default=0)
        for step, size in sizes:
            if size < least:
                raise ValueError(
                    f"refine_at[{step}]: got {size}, but the grids have {least} cells by then, "
                    f"expected {least} or more"
                )
            least = size

    def to(self, steps: int) -> History:
        """Train until so many steps were taken."""
        began, before = time.perf_counter(), self.history.seconds
        self.good, self.saved = self.snapshot(self.start), self.start
        with self.open_bar(total=steps) as self.bar:
            if self.bar is not None:
                self.bar.update(self.start)
            try:
                stopped = self.loop(steps)
            except KeyboardInterrupt:
                self.settle()
                stopped = "interrupted"
            except Exception:
                self.objective.model.load_state_dict(self.good["model"])
                raise
        self.history.stopped = stopped
        self.history.seconds = before + time.perf_counter() - began
        if self.path is not None:
            self.save()
        if stopped != "steps" or self.patience is not None:
            self.fall_back(stopped)
        if stopped == "diverged":
            event = self.history.events[-1]
            warnings.warn(
                f"training diverged: the loss or a weight at step {event['step']} is not finite. "
                f"The model was put back to step {event['restored']}.",
                RuntimeWarning,
                stacklevel=3,
            )
        return self.history

    def loop(self, steps: int) -> str:
        """Train to the end, and return why it ended."""
        for step in range(self.start, steps + 1):
            last = step >= steps
            if last or self.is_planned(step):
                stop = self.settle()
                if stop is None and not all(p.isfinite().all() for p in self.objective.model.parameters()):
                    self.ended, stop = step, "diverged"
                if stop is not None:
                    return stop
                if not last:
                    self.change_grids(step)
                self.pending = self.snapshot(step)
                self.evaluate(step)
            x, y = self.train.at(step)
            if last:
                self.losses.append(self.objective.final(x, y))
                return self.settle() or "steps"
            self.minimize(step, x, y)
            if self.bar is not None:
                self.bar.update()
        return "steps"

    def minimize(self, step: int, x: Tensor, y: Tensor) -> None:
        """Take one step of the optimizer, and note the losses before it."""
        first = True

        def prepare(vector: Vector | None) -> Evaluate | None:
            computed = self.objective.on(x, y, vector)
            if computed is None:
                return None

            def evaluate() -> Evaluation:
                nonlocal first
                made = computed()
                if first:
                    self.losses.append((made.value, made.penalty))
                    first = False
                return made

            return evaluate

        self.minimizer.step(step, prepare)

    @property
    def kan(self) -> nn.Module:
        """Return what changes of grids act on."""
        return self.objective.kan_of(self.objective.model)

    def change_grids(self, step: int) -> None:
        if step == self.changed:
            return
        for event in self.grid_changes.get(step, ()):
            from .. import grids

            if event["kind"] == "resample":
                assert isinstance(self.train, Points)
                self.train.draw()
            elif event["kind"] == "refine":
                grids.refine(self.kan, event["grid_size"], self.train.sample(), group=self.group)
            else:
                options = {**self.update_options, "group": self.group}
                grids.update_grid(self.kan, self.train.sample(), **options)
            self.history.events.append(event)
            self.minimizer.rebuild()
        self.changed = step

    def evaluate(self, step: int) -> None:
        """Note the test loss and the metrics of the model as it is."""
        functions = dict(self.metrics)
        if self.test is not None:
            functions[""] = self.objective.loss
        values = self.objective.measure(self.test or self.train, functions) if functions else {}
        values = dict(zip(values, replicas.mean(self.ranks, list(values.values())), strict=True))
        self.history.evaluated.append(step)
        if "" in values:
            self.history.test_loss.append(values.pop(""))
        for name, value in values.items():
            self.history.metrics.setdefault(name, []).append(value)
        if self.bar is not None and self.history.train_loss:
            self.bar.set_postfix_str(f"loss {self.history.train_loss[-1]:.2e}")

    def settle(self) -> str | None:
        """Judge the pending snapshot by the losses since; return why to stop, or None."""
        history, snapshot = self.history, self.pending
        seen = len(history.train_loss)
        history.train_loss += replicas.mean(self.ranks, [float(value) for value, _ in self.losses])
        penalties = [float(penalty) for _, penalty in self.losses if penalty is not None]
        history.regularization += replicas.mean(self.ranks, penalties)
        self.losses.clear()
        totals = history.train_loss
        if history.regularization:
            totals = [a + b for a, b in zip(totals[seen:], history.regularization[seen:], strict=True)]
            totals = history.train_loss[:seen] + totals
        bad = next((t for t in range(seen, len(totals)) if not math.isfinite(totals[t])), None)
        if snapshot is not None and self.judged < snapshot["step"] < (len(totals) if bad is None else bad):
            self.judge(snapshot)
        self.ended = len(totals) - 1 if bad is None else bad
        if bad is not None:
            return "diverged"
        return "early_stop" if self.patience is not None and self.stale >= self.patience else None

    def is_planned(self, step: int) -> bool:
        """Return whether the model is looked at after so many steps, however many are asked for."""
        return step % self.evaluate_every == 0 or step in self.grid_changes

    def standing(self) -> dict[str, Any]:
        """Return what early stopping goes by."""
        return {"best": self.best, "best_value": self.best_value, "stale": self.stale}

    def judge(self, snapshot: dict[str, Any]) -> None:
        """Judge a good state: is it the best so far, is it time to save it?"""
        step = self.judged = snapshot["step"]
        self.good = snapshot
        planned = self.is_planned(step)
        # a training without the break does not look at the end of a part
        self.regular = None if planned else self.standing()
        value = self.history.test_loss[-1] if self.test is not None else self.history.train_loss[step]
        if value < self.best_value:
            self.best_value, self.stale = value, 0
            self.best = snapshot if self.patience is not None else None
        else:
            self.stale += planned
        if self.path is not None and step - self.saved >= self.checkpoint_every:
            self.save()

    def snapshot(self, step: int) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.objective.model.state_dict()}
        if self.path is not None:  # only a file is read to go on
            parts["minimizer"] = self.minimizer.state_dict()
        if isinstance(self.train, Points) and self.train.function is not None:
            parts["points"] = self.train.x
        return {"step": step, **_clone(parts), "changed": self.changed}

    def fall_back(self, stopped: str) -> None:
        """Put the model back to the best state, or to the last good one."""
        target = self.best if self.best is not None else self.good
        self.objective.model.load_state_dict(target["model"])
        if stopped != "steps":
            self.history.events.append({"step": self.ended, "kind": stopped, "restored": target["step"]})
        self.history.cut(target["step"])

    def save(self) -> None:
        """Write the last good state; the file is whole at every moment."""
        assert self.path is not None
        history = copy.deepcopy(self.history)
        history.cut(self.good["step"])
        content = {
            "format": FORMAT,
            "recipe": self.recipe,
            "snapshot": self.good,
            "history": history.to_dict(),
            **(self.regular or self.standing()),
        }
        if replicas.leads(self.ranks):
            with replacing(self.path) as partial:
                torch.save(content, partial)
        self.saved = self.good["step"]

    def resume(self, source: Path, steps: int, argument: str) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: the file is none of `fit`'s, or of another optimizer or recipe, or of more steps.
            RuntimeError: its model does not fit; nothing has changed then.
        """
        model = self.objective.model
        where = next(model.parameters()).device
        foreign = f"{argument}: {str(source)!r} is not a file that fit wrote"
        try:
            content = torch.load(source, map_location=where, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch has no error of its own for files of another kind
            raise ValueError(foreign) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT or "snapshot" not in content:
            raise ValueError(foreign)
        for name, value in self.recipe.items():
            had = content["recipe"].get(name, _BEFORE.get(name, value) if value is not None else None)
            if had != value:
                raise ValueError(f"{name}: got {value!r}, but the checkpoint's training had {had!r}")
        snapshot = content["snapshot"]
        if snapshot["step"] > steps:
            raise ValueError(
                f"steps: got {steps}, but {str(source)!r} is at step {snapshot['step']}, expected no less"
            )
        trial = copy.deepcopy(model)
        trial.load_state_dict(snapshot["model"])
        self.check_refinements(trial, snapshot["changed"])
        try:
            Minimizer(trial, self.minimizer.build, self.minimizer.lr).load_state_dict(snapshot["minimizer"])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{argument}: its optimizer does not fit: {error}") from error
        model.load_state_dict(snapshot["model"])
        self.minimizer.load_state_dict(snapshot["minimizer"])
        if isinstance(self.train, Points) and "points" in snapshot:
            self.train.x = snapshot["points"]
        self.start, self.changed = snapshot["step"], snapshot["changed"]
        self.judged = self.start - (not self.is_planned(self.start))
        if self.patience is None or content["best"] is not None:  # or patience begins here
            self.best, self.best_value, self.stale = content["best"], content["best_value"], content["stale"]
        self.history = History(**content["history"])
        self.history.cut(self.start - 1)
        self.history.events.append({"step": self.start, "kind": "resumed", "file": str(source)})


def _clone(state: Any) -> Any:
    """Copy tensors in lists and dicts deeply, ten times as fast as copy.deepcopy."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {name: _clone(value) for name, value in state.items()}
    return [_clone(value) for value in state] if isinstance(state, list) else state
