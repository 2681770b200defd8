"""gplearn and pyoperon on one data set, in a Python that has them: `benchmarks.feynman` starts this script.

    python benchmarks/feynman_rivals.py gplearn|pyoperon < task.json > answer.json

A task is {"x": rows, "y": values, "seconds": of processor time, "seed": int}; the answer {"formulas": of the
variables v0, v1, ..., the one with the least error on the rows first, "cpu", "wall", "versions"}. It needs
nothing of this package. Each generation that has begun is finished.

Settings. Both: 1000 individuals, one thread, functions add sub mul div sin cos exp log sqrt square asin.
gplearn: constants in [-10, 10], parsimony 0.001, its metric "rmse", else its defaults.
pyoperon: NSGA-II on mean squared error and length, as its documentation does for Pareto fronts, 5 steps of
Levenberg-Marquardt on the constants of every individual, trees of up to 50 nodes, else its defaults.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np


def of_gplearn(x: np.ndarray, y: np.ndarray, limit: float, seed: int) -> list[str]:
    """Return the program with the least error of all generations, and the best by fitness of the last."""
    from gplearn.functions import make_function
    from gplearn.genetic import SymbolicRegressor

    own = [
        make_function(function=lambda a: np.exp(np.clip(a, -50, 50)), name="exp", arity=1),
        make_function(function=lambda a: np.square(np.clip(a, -1e50, 1e50)), name="square", arity=1),
        make_function(function=lambda a: np.arcsin(np.clip(a, -1, 1)), name="asin", arity=1),
    ]
    model = SymbolicRegressor(
        population_size=1000, generations=1, const_range=(-10.0, 10.0), parsimony_coefficient=0.001,
        function_set=["add", "sub", "mul", "div", "sin", "cos", "log", "sqrt", *own], metric="rmse",
        warm_start=True, random_state=seed, n_jobs=1, feature_names=[f"v{n}" for n in range(x.shape[1])],
    )  # fmt: skip
    start, best, generations = time.process_time(), (np.inf, ""), 0
    while time.process_time() - start < limit:
        generations += 1
        model.set_params(generations=generations)
        model.fit(x, y)
        for program in model._programs[-1]:
            if program is not None and program.raw_fitness_ < best[0]:
                best = (program.raw_fitness_, str(program))
        if best[0] < 1e-14:
            break
    return list(dict.fromkeys([best[1], str(model._program)]))


def of_pyoperon(x: np.ndarray, y: np.ndarray, limit: float, seed: int) -> list[str]:
    """Return the formulas of the front, the least error first."""
    import pyoperon as op
    from pyoperon import sklearn as operon

    end = time.process_time() + limit
    evaluators = []

    class Several(op.MultiEvaluator):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            evaluators.append(self)

    class Limited(op.NSGA2Algorithm):
        def Run(self, generator, _, threads, warm_start):
            def after_each_generation():
                if time.process_time() >= end:
                    for evaluator in evaluators:
                        evaluator.Budget = 0  # nothing more is evaluated: it ends

            return super().Run(generator, after_each_generation, threads, warm_start)

    op.MultiEvaluator, op.NSGA2Algorithm = Several, Limited
    model = operon.SymbolicRegressor(
        allowed_symbols="add,sub,mul,div,sin,cos,exp,log,sqrt,square,asin,constant,variable",
        objectives=["mse", "length"], optimizer_iterations=5, population_size=1000, max_length=50,
        generations=10**7, max_evaluations=10**10, max_time=100 * int(limit + 1), n_threads=1,
        random_state=seed,
    )  # fmt: skip
    model.fit(x, y)
    front = sorted(model.pareto_front_, key=lambda found: found["mean_squared_error"])
    names = [f"v{n}" for n in range(x.shape[1])]
    return [model.get_model_string(found["tree"], 17, names) for found in front]


def main() -> None:
    """Answer the task on standard input."""
    name = sys.argv[1]
    task = json.load(sys.stdin)
    x, y = np.array(task["x"]), np.array(task["y"])
    solve = {"gplearn": of_gplearn, "pyoperon": of_pyoperon}[name]
    cpu, wall = time.process_time(), time.monotonic()
    formulas = solve(x, y, task["seconds"], task["seed"])
    answer = {"formulas": formulas, "cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
    answer["versions"] = {"python": sys.version.split()[0], name: version(name), "numpy": version("numpy")}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
