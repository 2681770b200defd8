"""A pykan notebook, with one line more: f(x, y) = exp(sin(pi x) + y^2) from samples to a formula.

    python -m examples.use_pykan [--fast]

Needs pykan 0.2.8: pip install ".[pykan]".
"""

import sys

import torch
from kan import KAN, create_dataset

from kan_kernels.integrations import accelerate

fast = "--fast" in sys.argv
steps, rows = (10, 250) if fast else (50, 1000)
functions = ["x^2", "exp", "sin"] if fast else ["x", "x^2", "x^3", "exp", "log", "sqrt", "tanh", "sin"]
torch.set_default_dtype(torch.float64)
dataset = create_dataset(
    lambda x: torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2), n_var=2, train_num=rows
)

model = KAN(width=[2, 5, 1], grid=3, k=3, seed=42, auto_save=True, ckpt_path="./pykan_model")
print(accelerate(model))  # the line

model.fit(dataset, opt="LBFGS", steps=steps, lamb=0.001)
model = model.prune()
model.fit(dataset, opt="LBFGS", steps=steps)
model = model.refine(10)
model.fit(dataset, opt="LBFGS", steps=steps)
model.auto_symbolic(lib=functions)
model.fit(dataset, opt="LBFGS", steps=50)
print(f"test loss {float(model.evaluate(dataset)['test_loss']):.2e}")
print(model.symbolic_formula()[0][0])
