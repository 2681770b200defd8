"""Plain constants: what constants may stand for, and the scale at which most of them are plain."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ...nn import function_library as library
from .form import Form
from .joint import Rows, settled

# What a constant may stand for, the plainest first, and how well it must be known, relative to its size, for
# that to be no accident: (name of the unit, its value, largest numerator, denominators, known to).
_KINDS = (
    (1.0, 1, (1,), 0.3),
    (1.0, 12, (1,), 0.05),
    (math.pi, 2, (1, 2), 0.02),
    (1.0, 12, (2,), 0.02),
    (1.0, 12, (3, 4), 0.01),
    (1.0, 1000, (1,), 1e-4),
    (math.pi, 6, (1, 2, 3, 4, 6), 1e-3),
    (1.0, 12, (5, 6, 8, 10), 1e-3),
    (1.0, 1000, (7, 9, 12, 16, 20, 25, 50, 100), 1e-7),
)
SIGMAS = 3.0
HURTS = 1.01  # a loss so many times larger is one that hurts
TINY = 1e-6  # a constant that is tried as 0, whatever is known of it


class Plain(NamedTuple):
    """A plain number: fraction times 1, or times pi."""

    fraction: Fraction
    pi: bool

    @property
    def value(self) -> float:
        """Return it as a float."""
        return float(self.fraction) * (math.pi if self.pi else 1.0)


def plain(value: float, error: float) -> Plain | None:
    """Return the plainest number within `error` of a value, if there is one that is no accident."""
    if abs(value) <= error:
        return Plain(Fraction(0), False)
    for unit, largest, denominators, known in _KINDS:
        if error > known * max(abs(value), 1e-3):
            continue
        for denominator in denominators:
            numerator = round(value / unit * denominator)
            if numerator == 0 or abs(numerator) > largest * denominator:
                continue
            if math.gcd(numerator, denominator) > 1:
                continue
            if abs(numerator / denominator * unit - value) <= error:
                return Plain(Fraction(numerator, denominator), unit == math.pi)
    return None


def named(value: float) -> Plain | None:
    """Return the plain number that a float is, to its last digits."""
    return plain(value, 4e-15 * abs(value))


def errors(form: Form, theta: Tensor, free: Tensor, rows: Rows) -> Tensor:
    """Return how far each free constant may be off, (F,): SIGMAS standard errors, and rounding."""
    matrix, _ = rows.system(form, theta, free)
    value = rows.value(form, theta)
    count = rows.x.shape[0]
    if rows.loss is None:
        variance = value * rows.y.shape[1] / max(1, rows.y.numel() - int(free.sum())) * count
    else:
        variance = 1.0 / count  # of a loss that is a mean of negative log likelihoods
    covariance = torch.linalg.pinv(matrix, rtol=1e-14, hermitian=True)
    error = SIGMAS * (variance * covariance.diagonal()).clamp(min=0).sqrt()
    return error + rows.rounding * theta[free].abs().clamp(min=1e-3)


class Gauge(NamedTuple):
    """A scale that is free: `scaled` times s, and of each in `against`, (index, power), s^-power times.

    A logarithm's goes to `shifted`, (index of the constant, index of the factor). sign: whether s may be < 0.
    """

    scaled: tuple[int, ...]
    against: tuple[tuple[int, float], ...]
    shifted: tuple[int, int] | None
    sign: bool
    odd: bool

    def apply(self, theta: Tensor, s: float) -> Tensor:
        """Return the same formula at another scale."""
        theta = theta.clone()
        theta[list(self.scaled)] *= s
        for index, power in self.against:
            theta[index] *= abs(s) ** -power * (-1.0 if s < 0 and self.odd else 1.0)
        if self.shifted is not None:
            theta[self.shifted[0]] -= theta[self.shifted[1]] * math.log(abs(s))
        return theta


def gauges(form: Form) -> Iterator[Gauge]:
    """Yield the scales that are free in a form."""
    places = {slot[:4]: slot.at for slot in form.slots()}
    for n, nodes in enumerate(form.layers):
        for k, node in enumerate(nodes):
            users = form.users(n, k)
            function = library.get(form.term(users[0]).name) if len(users) == 1 else None
            own = [
                (places[n, k, j, -1], *(places[n, k, j, t] + 2 for t in range(len(factor))))
                for j, factor in enumerate(node)
            ]
            for j in range(len(node)):
                if function is not None and function.name == "log" and len(node) == 1:
                    user = users[0]
                    bias = places[user.layer, user.node, user.factor, -1]
                    yield Gauge(own[j], (), (bias, user.at + 2), False, False)
                elif function is not None and function.degree and (len(node) == 1 or function.name == "x"):
                    odd = function.parity == -1
                    signed = bool(function.parity) and function.domain[0] == -math.inf
                    yield Gauge(own[j], ((users[0].at + 2, function.degree),), None, signed, odd)
                elif j > 0:
                    yield Gauge(own[j], tuple((i, 1.0) for i in own[0]), None, True, True)


def scaled(
    form: Form, theta: Tensor, free: Tensor, rows: Rows, held: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the same formula at the scales where most constants are plain, and what is then still free.

    Scales that would change constants that are `held` stay.
    """
    theta, free = settled(form, theta), free.clone()
    known = torch.zeros(form.size, dtype=torch.float64)
    for gauge in gauges(form):
        if held is not None and _moves(gauge, theta, held):
            continue
        known[free] = errors(form, theta, free, rows)
        best, fixed = None, None
        for index in (*gauge.scaled, *(i for i, _ in gauge.against)):
            value = float(theta[index])
            if not bool(free[index]) or abs(value) <= 1e-6 * float(theta[list(gauge.scaled)].abs().max()):
                continue
            if index in gauge.scaled:
                s = 1 / value if gauge.sign else 1 / abs(value)
            else:
                power = dict(gauge.against)[index]
                s = abs(value) ** (1 / power) * (-1.0 if value < 0 and gauge.odd and gauge.sign else 1.0)
            if not (1e-8 < abs(s) < 1e8):
                continue
            trial = gauge.apply(theta, s)
            moved = [*gauge.scaled, *(i for i, _ in gauge.against)]
            if gauge.shifted is not None:
                moved.append(gauge.shifted[0])
            # a relative error stays what it is
            share = (known / theta.abs().clamp(min=1e-300)).nan_to_num(0.0, 0.0)
            count = sum(_cost(float(trial[i]), float(share[i] * trial[i].abs())) for i in moved)
            if best is None or count < best[0]:
                best, fixed = (count, trial), index
        if best is not None and fixed is not None:
            theta = best[1]
            free[fixed] = False
            theta[fixed] = round(float(theta[fixed]))
    return theta, free


def _moves(gauge: Gauge, theta: Tensor, held: Tensor) -> bool:
    """Return whether another scale changes a constant that is held."""
    moved = [i for i in (*gauge.scaled, *(i for i, _ in gauge.against)) if float(theta[i]) != 0]
    if gauge.shifted is not None:
        moved.append(gauge.shifted[0])
    return bool(held[moved].any())


def _cost(value: float, error: float) -> float:
    number = plain(value, min(error, 0.3 * abs(value)) + 1e-9)
    if number is None:
        return 4.0
    if number.fraction in (0, 1):
        return 0.0 if not number.pi else 1.5
    return 1.0 + 0.25 * (number.fraction.denominator > 1) + 0.5 * number.pi + 0.1 * (number.fraction < 0)


def turned(form: Form, theta: Tensor) -> Tensor:
    """Return the same formula with every phase within half a period of 0."""
    theta = theta.clone()
    places = {slot[:4]: slot.at for slot in form.slots()}
    for slot in form.slots():
        if slot.term < 0:
            continue
        term = form.term(slot)
        function = library.get(term.name)
        at = slot.at + 1
        alone = slot.layer > 0 and len(form.users(slot.layer - 1, term.source)) == 1
        if alone and len(form.layers[slot.layer - 1][term.source]) == 1:
            at = places[slot.layer - 1, term.source, 0, -1]
            below = [s for s in form.slots() if (s.layer, s.node) == (slot.layer - 1, term.source)]
            scales = [float(theta[s.at + 2]) for s in below if s.term >= 0]
            if function.parity and scales and scales[0] < 0:  # x - y before y - x
                theta[[s.at + 2 * (s.term >= 0) for s in below]] *= -1.0
                theta[slot.at + 2] *= function.parity
        elif slot.layer == 0:
            constants = torch.cat((theta[slot.at : slot.at + 3], theta.new_zeros(1)))
            if function.absorb is None or function.name == "exp":  # its plainest form needs no d
                theta[slot.at : slot.at + 3] = function.canonical(constants)[:3]
        if function.period is not None:
            turns = round(float(theta[at]) / function.period)
            theta[at] -= turns * function.period
            if turns % 2:
                theta[slot.at + 2] *= function.period_sign
    return theta


def snapped(
    form: Form, theta: Tensor, free: Tensor, train: Rows, valid: Rows, steps: int = 20
) -> tuple[Tensor, Tensor]:
    """Return the formula with plain numbers wherever that does not hurt, and what is still free.

    One constant after the other, the surest first; after each all others are fitted again.
    """
    limit = valid.limit(valid.value(form, theta), HURTS)
    limit_train = train.limit(train.value(form, theta), HURTS)
    refused: set[int] = set()
    while bool(free.any()):
        index = free.nonzero().flatten().tolist()
        options = []
        for i, error in zip(index, errors(form, theta, free, train).tolist(), strict=True):
            value = float(theta[i])
            if abs(value) < TINY:  # x was rounded too, of which what is left of y says little
                error = max(error, abs(value))
            number = None if i in refused else plain(value, error)
            if number is not None:
                weight = abs(number.fraction.numerator) + number.fraction.denominator + number.pi
                options.append((weight, abs(number.value - value) / error, i, number.value))
        if not options:
            return theta, free
        sure = [o for o in options if o[1] < 1e-3]
        for _, _, i, value in [min(options)] if len(sure) < 2 else sure:
            trial, rest = theta.clone(), free.clone()
            trial[i], rest[i] = value, False
            trial, value_train = train.fit(form, trial, rest, steps)
            if value_train <= limit_train and valid.value(form, trial) <= limit:
                theta, free = trial, rest
            else:
                refused.add(i)
    return theta, free
