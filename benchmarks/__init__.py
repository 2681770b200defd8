"""The benchmark harness of kan_kernels: ``python -m benchmarks --help``."""
