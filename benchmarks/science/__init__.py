"""The science utilities against pykan's, in one run: ``python -m benchmarks science``."""
