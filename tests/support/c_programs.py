"""Headers of C that the package writes, compiled and run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kan_kernels import deploy

CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="there is no C compiler `cc` on the path")
PROGRAM = """
#include "kan.h"
#include <stdio.h>
int main(void) {{
  {type} x[{inputs}], y[{outputs}];
  while (fread(x, sizeof x[0], {inputs}, stdin) == {inputs}) {{
    {call};
    fwrite(y, sizeof y[0], {outputs}, stdout);
  }}
  return 0;
}}
"""


def run(folder: Path, header: str, x: Any, outputs: int, call: str = "kan(x, y)") -> Any:
    """Compile as C99, every warning an error; return y (n, outputs) for x (n, in)."""
    name = "double" if x.dtype == np.float64 else "float"
    deploy.write(folder / "kan.h", header)
    sizes = {"type": name, "inputs": x.shape[1], "outputs": outputs}
    (folder / "main.c").write_text(PROGRAM.format(call=call, **sizes))
    warnings = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    command = [str(CC), *warnings, "-O1", "-o", "kan", "main.c", "-lm"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    done = subprocess.run(["./kan"], cwd=folder, input=x.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, x.dtype).reshape(len(x), outputs)
