"""The record of a training."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class History:
    """A record of what happened in a training. Index t stands for the model after t steps.

    Attributes:
        train_loss: the loss on the batch of step t, before the step; the last entry is the model returned.
        regularization: the regularisation likewise, before it is multiplied by its weight; empty without it.
        evaluated: the numbers of steps after which the lists below were filled.
        test_loss: on the test data; empty without them.
        metrics: a list for each metric, on the test data, or on the training data without them.
        events: {"step", "kind", ...} with kind "refine" (and "grid_size"), "grid_update", "resample" (other
            points), "resumed" (and the "file"), "not_resumed" (and the "file" that was not there),
            "early_stop", "diverged" or "interrupted"; the last three say to which step the model was
            "restored".
        stopped: "steps", "early_stop", "diverged" or "interrupted".
        seconds: of the whole training, evaluation included.

    Example:
        >>> History.from_json(History(train_loss=[1.0, 0.5]).to_json()).train_loss
        [1.0, 0.5]
    """

    train_loss: list[float] = field(default_factory=list)
    regularization: list[float] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = "steps"
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `History(**data)` reads."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "History":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def cut(self, step: int) -> None:
        """Forget everything after `step` steps, but keep the events."""
        del self.train_loss[step + 1 :], self.regularization[step + 1 :]
        kept = sum(t <= step for t in self.evaluated)
        del self.evaluated[kept:]
        for values in (self.test_loss, *self.metrics.values()):
            del values[kept:]
