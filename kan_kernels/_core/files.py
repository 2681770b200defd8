"""Files that are whole at every moment."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes its place at the end, and goes after an error."""
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, all of it or nothing: what was there stays until the new one is whole.

    Args:
        path: of the file, in a folder that is there.
        text: what it will hold, in UTF-8.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> write("kan.h", "/* nothing yet */")
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
