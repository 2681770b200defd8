"""Layers with the constructors, parameters and numbers of other KAN packages, on these kernels.

One module a package: `from kan_kernels.compat.efficient_kan import KAN`.
"""
