"""The special functions of section 3.2: domains, samples, and the paper's results
(table 1, arXiv 2404.19756).

Needs scipy >= 1.15.
"""

import math
from collections.abc import Callable

import torch
from scipy import special

from .contest import Data

PI = math.pi


def harmonic(m: int, n: int) -> Callable:
    """The real part of the spherical harmonic, of azimuth and polar angle."""
    return lambda azimuth, polar: special.sph_harm_y(n, m, polar, azimuth).real


def legendre(m: int) -> Callable:
    return lambda degree, x: special.lpmv(m, degree, x)


def sine_amplitude(u, m):
    return special.ellipj(u, m)[0]


ANGLES = (0, 2 * PI), (0, PI)
DEGREES = (0, 5), (0, 1)  # at -1 functions of broken degree have no limit
# name: (function, domain of x, of y)
FUNCTIONS: dict[str, tuple] = {
    "ellipj(x, y), sn": (sine_amplitude, (0, 8), (0, 0.9)),
    "ellipkinc(x, y)": (special.ellipkinc, (0, PI / 2), (0, 0.95)),
    "ellipeinc(x, y)": (special.ellipeinc, (0, PI / 2), (0, 1)),
    "jv(x, y)": (special.jv, (0, 5), (0, 10)),
    "yv(x, y)": (special.yv, (0, 2), (1, 10)),
    "kv(x, y)": (special.kv, (0, 2), (1, 5)),
    "iv(x, y)": (special.iv, (0, 5), (0, 5)),
    "lpmv(0, x, y)": (legendre(0), *DEGREES),
    "lpmv(1, x, y)": (legendre(1), *DEGREES),
    "lpmv(2, x, y)": (legendre(2), *DEGREES),
    "sph_harm(0, 1, x, y)": (harmonic(0, 1), *ANGLES),
    "sph_harm(1, 1, x, y)": (harmonic(1, 1), *ANGLES),
    "sph_harm(0, 2, x, y)": (harmonic(0, 2), *ANGLES),
    "sph_harm(1, 2, x, y)": (harmonic(1, 2), *ANGLES),
    "sph_harm(2, 2, x, y)": (harmonic(2, 2), *ANGLES),
}
# the smallest KAN with a test RMSE below 1e-2 and its RMSE, the best KAN and its RMSE, that of the best MLP
PAPER = {
    "ellipj(x, y), sn": ("[2,2,1]", 7.29e-3, "[2,3,2,1,1]", 1.33e-4, 6.48e-4),
    "ellipkinc(x, y)": ("[2,2,1,1]", 1.00e-3, "[2,2,1,1,1]", 1.24e-4, 5.52e-4),
    "ellipeinc(x, y)": ("[2,2,1,1]", 8.36e-5, "[2,2,1,1]", 8.26e-5, 3.04e-4),
    "jv(x, y)": ("[2,2,1]", 4.93e-3, "[2,3,1,1,1]", 1.64e-3, 5.52e-3),
    "yv(x, y)": ("[2,3,1]", 1.89e-3, "[2,2,2,1]", 1.49e-5, 3.45e-4),
    "kv(x, y)": ("[2,1,1]", 4.89e-3, "[2,2,1]", 2.52e-5, 1.67e-4),
    "iv(x, y)": ("[2,4,3,2,1,1]", 9.28e-3, "[2,4,3,2,1,1]", 9.28e-3, 1.07e-2),
    "lpmv(0, x, y)": ("[2,2,1]", 5.25e-5, "[2,2,1]", 5.25e-5, 1.74e-2),
    "lpmv(1, x, y)": ("[2,4,1]", 6.90e-4, "[2,4,1]", 6.90e-4, 1.50e-3),
    "lpmv(2, x, y)": ("[2,2,1]", 4.88e-3, "[2,3,2,1]", 2.26e-4, 9.43e-4),
    "sph_harm(0, 1, x, y)": ("[2,1,1]", 2.21e-7, "[2,1,1]", 2.21e-7, 1.25e-6),
    "sph_harm(1, 1, x, y)": ("[2,2,1]", 7.86e-4, "[2,3,2,1]", 1.22e-4, 6.70e-4),
    "sph_harm(0, 2, x, y)": ("[2,1,1]", 1.95e-7, "[2,1,1]", 1.95e-7, 2.85e-6),
    "sph_harm(1, 2, x, y)": ("[2,2,1]", 4.70e-4, "[2,2,1,1]", 1.50e-5, 1.84e-3),
    "sph_harm(2, 2, x, y)": ("[2,2,1]", 1.12e-3, "[2,2,3,2,1]", 9.45e-5, 6.21e-4),
}


def samples(function: Callable, *domains: tuple[float, float]) -> tuple[Data, float]:
    """(x, y) to train with, to choose by and to test with, and the deviation that y was divided by."""
    torch.manual_seed(0)
    parts = []
    for rows in (1000, 4000, 4000):
        x = torch.rand(rows, 2) * 2 - 1
        places = ((a + (b - a) * (1 + x[:, i]) / 2).numpy() for i, (a, b) in enumerate(domains))
        parts.append((x, torch.as_tensor(function(*places)).unsqueeze(1)))
    mean, deviation = parts[0][1].mean(), parts[0][1].std()
    return [(x, (y - mean) / deviation) for x, y in parts], float(deviation)
