"""Files that are whole at every moment."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes its place at the end, and goes after an error.

    Raises:
        OSError: the file cannot be made or replaced; of `path`, whoever was writing.
    """
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.open("wb").close()  # the writers' own errors are of many kinds, and not all name a file
        yield partial
        os.replace(partial, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and str(error.filename) == str(partial):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
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
