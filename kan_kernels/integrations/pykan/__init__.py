"""pykan: what takes its models, and converts them."""
