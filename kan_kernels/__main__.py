"""`python -m kan_kernels`: versions, libraries loaded, backends available or why not."""

import sys


def main() -> int:
    """Print the report; 1 if something is broken, else 0."""
    try:
        from .diagnostics import report
    except ModuleNotFoundError as error:
        print(f"kan_kernels: {error}; only the NumPy model works without it")
        return 1
    text, well = report()
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
