"""A stand-in for efficient-kan, held to its golden numbers in test_integrations_efficient_kan.py."""

from benchmarks.efficient_kan_form import KAN, KANLinear

__all__ = ["KAN", "KANLinear"]
