"""The equations of the Feynman lectures with up to three variables, and the ranges they are sampled from.

Formulas and ranges are those of the AI Feynman data base (Udrescu & Tegmark, arXiv 1905.11481, table 4).
"""

from typing import NamedTuple


class Equation(NamedTuple):
    """An equation: its number in the lectures, its formula, and {variable: (least, largest)}."""

    name: str
    formula: str
    ranges: dict[str, tuple[float, float]]


def _of(text: str) -> Equation:
    """Return the equation of a line: number, formula, variables, with ranges where they are not [1, 5]."""
    name, formula, variables = (part.strip() for part in text.split("|"))
    ranges = {}
    for variable in variables.split():
        symbol, _, bounds = variable.partition("=")
        low, high = (float(b) for b in bounds.split(":")) if bounds else (1.0, 5.0)
        ranges[symbol] = (low, high)
    return Equation(name, formula, ranges)


_LINES = """
I.6.2a    | exp(-theta**2/2)/sqrt(2*pi)                           | theta=1:3
I.6.2     | exp(-(theta/sigma)**2/2)/(sqrt(2*pi)*sigma)           | sigma=1:3 theta=1:3
I.6.2b    | exp(-((theta - theta1)/sigma)**2/2)/(sqrt(2*pi)*sigma) | sigma=1:3 theta=1:3 theta1=1:3
I.10.7    | m0/sqrt(1 - v**2/c**2)                                | m0 v=1:2 c=3:10
I.12.1    | mu*Nn                                                 | mu Nn
I.12.4    | q1/(4*pi*eps*r**2)                                    | q1 eps r
I.12.5    | q2*Ef                                                 | q2 Ef
I.14.3    | m*g*z                                                 | m g z
I.14.4    | k*x**2/2                                              | k x
I.15.10   | m0*v/sqrt(1 - v**2/c**2)                              | m0 v=1:2 c=3:10
I.16.6    | (u + v)/(1 + u*v/c**2)                                | c u v
I.18.12   | r*F*sin(theta)                                        | r F theta=0:5
I.25.13   | q/C                                                   | q C
I.26.2    | asin(n*sin(theta2))                                   | n=0:1 theta2
I.27.6    | 1/(1/d1 + n/d2)                                       | d1 d2 n
I.29.4    | omega/c                                               | omega=1:10 c=1:10
I.30.3    | I0*sin(n*theta/2)**2/sin(theta/2)**2                  | I0 theta n
I.30.5    | asin(lambd/(n*d))                                     | lambd=1:2 d=2:5 n
I.34.10   | omega0/(1 - v/c)                                      | c=3:10 v=1:2 omega0
I.34.14   | (1 + v/c)/sqrt(1 - v**2/c**2)*omega0                  | c=3:10 v=1:2 omega0
I.34.27   | h*omega/(2*pi)                                        | omega h
I.37.4    | I1 + I2 + 2*sqrt(I1*I2)*cos(delta)                    | I1 I2 delta
I.39.10   | 3*pr*V/2                                              | pr V
I.39.11   | pr*V/(gamma - 1)                                      | gamma=2:5 pr V
I.43.31   | mob*kb*T                                              | mob T kb
I.47.23   | sqrt(gamma*pr/rho)                                    | gamma pr rho
I.48.20   | m*c**2/sqrt(1 - v**2/c**2)                            | m v=1:2 c=3:10
II.3.24   | Pwr/(4*pi*r**2)                                       | Pwr r
II.4.23   | q/(4*pi*eps*r)                                        | q eps r
II.8.7    | 3*q**2/(20*pi*eps*d)                                  | q eps d
II.8.31   | eps*Ef**2/2                                           | eps Ef
II.10.9   | sigma/(eps*(1 + chi))                                 | sigma eps chi
II.11.28  | 1 + n*alpha/(1 - n*alpha/3)                           | n=0:1 alpha=0:1
II.13.23  | rho0/sqrt(1 - v**2/c**2)                              | rho0 v=1:2 c=3:10
II.13.34  | rho0*v/sqrt(1 - v**2/c**2)                            | rho0 v=1:2 c=3:10
II.15.4   | -mom*B*cos(theta)                                     | mom B theta
II.15.5   | -pd*Ef*cos(theta)                                     | pd Ef theta
II.24.17  | sqrt(omega**2/c**2 - pi**2/d**2)                      | omega=4:6 c=1:2 d=2:4
II.27.16  | eps*c*Ef**2                                           | eps c Ef
II.27.18  | eps*Ef**2                                             | eps Ef
II.34.2a  | q*v/(2*pi*r)                                          | q v r
II.34.2   | q*v*r/2                                               | q v r
II.34.29a | q*h/(4*pi*m)                                          | q h m
II.37.1   | mom*(1 + chi)*B                                       | mom B chi
II.38.14  | Y/(2*(1 + sigma))                                     | Y sigma
III.7.38  | 4*pi*mom*B/h                                          | mom B h
III.8.54  | sin(2*pi*En*t/h)**2                                   | En=1:2 t=1:2 h=1:4
III.12.43 | n*h/(2*pi)                                            | n h
III.15.12 | 2*U*(1 - cos(k*d))                                    | U k d
III.15.14 | h**2/(8*pi**2*En*d**2)                                | h En d
III.15.27 | 2*pi*alpha/(n*d)                                      | alpha n d
III.17.37 | beta*(1 + alpha*cos(theta))                           | beta alpha theta
"""
EQUATIONS = tuple(_of(line) for line in _LINES.strip().splitlines())
