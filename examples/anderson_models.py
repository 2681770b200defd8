"""Three quasiperiodic chains with a known mobility edge: Hamiltonians, eigenstates, fractal dimensions.

All have the frequency b = F_(m-1)/F_m, which tends to 1/golden ratio (as good as the golden ratio, which is
larger by 1), on rings of N = F_m sites, or 2 F_m for the mosaic, so that there are no edge states. Energies
are in units of the hopping.

MM    mosaic, kappa = 2: 2 lambda cos(2 pi b n + phi) on every second site; lambda |E| = 1.
      Wang et al., Phys. Rev. Lett. 125, 196604 (2020). The paper's lambda is twice this.
GAAM  generalised Aubry-Andre: 2 lambda c / (1 - alpha c), c = cos(2 pi b n + phi); alpha E = 2 (1 - lambda).
      Ganeshan, Pixley, Das Sarma, Phys. Rev. Lett. 114, 146601 (2015).
MAAM  modified Aubry-Andre: hopping exp(-p |n - n'|), lambda c; E + 1 = lambda cosh p. The paper's unit is the
      hopping between neighbours instead, which makes the 1 an exp(p).
      Biddle, Das Sarma, Phys. Rev. Lett. 104, 070601 (2010).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]
TWO_PI = 2 * np.pi


class Model(NamedTuple):
    """Parameters are drawn uniformly from `ranges`, phi among them; the network sees E and all of them.

    hamiltonian: (parameters by name, m) -> a real symmetric matrix. g: of the inputs by name, > 0 where
    states are localised; `edge` is the same as text.
    """

    name: str
    title: str
    ranges: dict[str, tuple[float, float]]
    hamiltonian: Callable[[dict[str, float], int], Array]
    edge: str
    g: Callable[[dict[str, Array]], Array]

    @property
    def inputs(self) -> list[str]:
        return ["E", *self.ranges]


def fibonacci(m: int) -> tuple[int, int]:
    """F_(m-1), F_m with F_1 = F_2 = 1."""
    a, b = 0, 1
    for _ in range(m - 1):
        a, b = b, a + b
    return a, b


def wave(phi: float, m: int, turns: int = 1) -> Array:
    """cos(2 pi b n + phi) on `turns` F_m sites."""
    below, size = fibonacci(m)
    n = np.arange(turns * size)
    return np.cos(TWO_PI * ((below * n) % size) / size + phi)


def ring(potential: Array) -> Array:
    """Nearest neighbours with hopping 1."""
    h = np.diag(potential)
    n = np.arange(len(h))
    h[n, n - 1] = h[n - 1, n] = 1.0
    return h


def mosaic(at: dict[str, float], m: int) -> Array:
    potential = 2 * at["lambda"] * wave(at["phi"], m, turns=2)
    potential[1::2] = 0.0
    return ring(potential)


def generalised(at: dict[str, float], m: int) -> Array:
    c = wave(at["phi"], m)
    return ring(2 * at["lambda"] * c / (1 - at["alpha"] * c))


def modified(at: dict[str, float], m: int) -> Array:
    potential = at["lambda"] * wave(at["phi"], m)
    distance = np.arange(len(potential))
    hopping = np.exp(-at["p"] * np.minimum(distance, len(potential) - distance))
    hopping[0] = 0.0
    return scipy.linalg.circulant(hopping) + np.diag(potential)


PHASE = (0.0, TWO_PI)
MODELS = (
    Model(
        "MM",
        "mosaic model",
        {"lambda": (0.25, 2.0), "phi": PHASE},
        mosaic,
        "lambda*abs(E) - 1",
        lambda at: at["lambda"] * abs(at["E"]) - 1,
    ),
    Model(
        "GAAM",
        "generalised Aubry-Andre model",
        {"alpha": (-0.75, 0.75), "lambda": (0.25, 1.75), "phi": PHASE},
        generalised,
        "alpha*E + 2*lambda - 2",
        lambda at: at["alpha"] * at["E"] + 2 * at["lambda"] - 2,
    ),
    Model(
        "MAAM",
        "modified Aubry-Andre model",
        {"p": (0.5, 2.0), "lambda": (0.1, 1.5), "phi": PHASE},
        modified,
        "lambda*cosh(p) - E - 1",
        lambda at: at["lambda"] * np.cosh(at["p"]) - at["E"] - 1,
    ),
)


def fractal_dimension(states: Array) -> Array:
    """-log(IPR)/log(N) of the columns: 1 for a plane wave, 0 for a single site."""
    weight = states**2
    ipr = (weight**2).sum(0) / weight.sum(0) ** 2
    return -np.log(ipr) / np.log(len(states))


def eigenstates(model: Model, chains: int, m: int, seed: int) -> tuple[Array, Array]:
    """All states of `chains` random chains: inputs (chains, N, inputs) and fractal dimensions (chains, N)."""
    rng = np.random.default_rng(seed)
    inputs, dimensions = [], []
    for _ in range(chains):
        at = {name: rng.uniform(*span) for name, span in model.ranges.items()}
        energies, states = scipy.linalg.eigh(model.hamiltonian(at, m), driver="evd")
        inputs.append(np.column_stack([energies, np.tile(list(at.values()), (len(energies), 1))]))
        dimensions.append(fractal_dimension(states))
    return np.stack(inputs), np.stack(dimensions)
