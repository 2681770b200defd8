"""Print the architectures of this machine's NVIDIA cards as TORCH_CUDA_ARCH_LIST has them: "8.6;9.0".

Asks nvidia-smi. Without one, or without a card that the CUDA kernels run on, one architecture stands for all:
what is built here is tested here, and nobody waits for the rest.
"""

import re
import subprocess

OLDEST, NOBODYS = (8, 0), "9.0"


def cards() -> list[tuple[int, int]]:
    """The compute capabilities that nvidia-smi names; none where there is none, or it does not answer."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.split() if done.returncode == 0 else []
    found = (re.fullmatch(r"(\d+)\.(\d)", line) for line in lines)
    return sorted({(int(card[1]), int(card[2])) for card in found if card})


if __name__ == "__main__":
    usable = [f"{major}.{minor}" for major, minor in cards() if (major, minor) >= OLDEST]
    print(";".join(usable) or NOBODYS)
