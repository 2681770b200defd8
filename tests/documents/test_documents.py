"""README, CONTRIBUTING and docs: blocks run as they are pasted, commands exist, figures are true."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from documents import BLOCKS, PYTHON, ROOT, TEXTS, Block, tracked
from kan_kernels import KAN
from kan_kernels.grids import update_grid
from tools import build_needs

NOT_RUN = Counter(
    {
        "fastkan is not on PyPI": 1,
        "needs jax and a model of jaxKAN": 1,
    }
)
LANGUAGES = {"python", "bash", "text", "output"}


def test_blocks_say_what_they_are() -> None:
    """Every block is fenced with its language; an indented one would escape this test."""
    assert len(PYTHON) > 10
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block}: {block.language}, expected one of {LANGUAGES}"
    for path, text in TEXTS.items():
        indented = re.findall(r"^(?![-*\d].*).*\n\n(    .*)", text, re.MULTILINE)
        assert not indented, f"{path}: fence this block and name its language: {indented[0]}"


def test_left_out_blocks_are_known() -> None:
    """A block that is not run says why, and is counted here."""
    reasons = [
        block.marker.removeprefix("not run: ") for block in PYTHON if block.marker.startswith("not run")
    ]
    assert Counter(reasons) == NOT_RUN


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, and torch's settings as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    dtype = torch.get_default_dtype()
    yield tmp_path
    torch.set_default_dtype(dtype)


def execute(block: Block, names: dict[str, Any]) -> str:
    """Run a block in a namespace, and return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.code, str(block), "exec"), names)
    return printed.getvalue()


def runnable() -> list[Any]:
    """Return the blocks that run, as parameters; those that say that they take long are marked."""
    blocks = [block for block in PYTHON if not block.marker.startswith("not run")]
    long = pytest.mark.long
    return [pytest.param(b, id=str(b), marks=long if b.marker.startswith("long: ") else ()) for b in blocks]


@pytest.mark.parametrize("block", runnable())
def test_block_runs_alone(block: Block, elsewhere: Path) -> None:
    """In a namespace of its own, as a reader pastes it; an output block behind it is what it prints."""
    assert not block.marker or block.marker.startswith("long: "), block.marker
    if "compiles C++" in block.marker and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler `g++` on the path")
    printed = execute(block, {"__name__": "pasted"})
    position = BLOCKS.index(block)
    following = BLOCKS[position + 1 : position + 2]
    if following and following[0].language == "output":
        assert printed.strip() == following[0].code.strip()


COMMAND = re.compile(r"`((?:make|python|pip) [^`]*)`")


def commands() -> list[tuple[str, str]]:
    """Every shell command of a block or in a text, with where it stands."""
    found = [
        (str(block), line.partition("  #")[0].strip())
        for block in BLOCKS
        if block.language == "bash"
        for line in block.code.splitlines()
    ]
    for path, text in TEXTS.items():
        found += [(path.name, command) for command in COMMAND.findall(text)]
    return found


def test_commands_exist() -> None:
    """Targets of make, modules, scripts, options and extras are there; they are not run."""
    found = commands()
    assert len(found) > 20
    for where, command in found:
        words = [word for word in shlex.split(command.replace("|", " ")) if "=" not in word or ">=" in word]
        wrong = {"make": wrong_target, "python": wrong_script, "pip": wrong_package, "cd": no_error}[
            words[0]
        ](words[1:])
        assert wrong is None, f"{where}: `{command}`: {wrong}"


def no_error(words: list[str]) -> str | None:
    return None


def wrong_target(words: list[str]) -> str | None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return None if words[0] in targets else f"no target {words[0]} in the Makefile"


def wrong_script(words: list[str]) -> str | None:
    if words[0] == "-m":
        if words[1] == "pip":
            return wrong_package(words[2:])
        if importlib.util.find_spec(words[1]) is None:
            return f"no module {words[1]}"
        folder = ROOT / words[1].replace(".", "/")
        files = [folder.with_suffix(".py"), *folder.rglob("*.py")]
        source = "".join(file.read_text() for file in files if file.exists())
    elif not (ROOT / words[0]).exists():
        return f"no file {words[0]}"
    else:
        source = (ROOT / words[0]).read_text() + "--quiet build_ext --inplace"
    unknown = [word for word in words if word.startswith("--") and word not in source]
    return f"no option {unknown}" if unknown else None


def wrong_package(words: list[str]) -> str | None:
    """Extras and requirements are those of pyproject.toml; the package itself comes from a clone."""
    project = (ROOT / "pyproject.toml").read_text()
    for word in words[1:]:
        if word.startswith("."):
            for extra in re.findall(r"\w+", word):
                if not re.search(rf"^{extra} = \[", project, re.MULTILINE):
                    return f"no extra {extra}"
        elif not word.startswith("-") and not re.search(rf'"{re.escape(word)}["\[=<>;]', project):
            return f"pyproject.toml does not ask for {word}"
    return None


def test_nobody_is_sent_to_pypi_for_this_package() -> None:
    """It is not there: documents and errors name what is, or a clone."""
    for path in tracked():
        if path.suffix in (".py", ".md") and path.parts[0] != "tests":
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not re.search(r"pip install ['\"]?kan_kernels", text), path


def test_build_needs_of_the_install_page() -> None:
    """What the page has one install for a build without isolation is what the build asks for."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (line,) = re.findall(r'^pip install ("setuptools.*)$', page, re.MULTILINE)
    project = build_needs.PYPROJECT.read_text(encoding="utf-8")
    (requires,) = re.findall(r"^requires = (\[.*\])$", project, re.MULTILINE)
    assert set(shlex.split(line)) == {need for need in ast.literal_eval(requires) if "torch" not in need}


def test_sentences_have_the_numbers_of_the_tables() -> None:
    """Those of the README and the benchmarks about MLPs, and about another machine."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    def row(name: str) -> list[str]:
        (cells,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", page, re.MULTILINE)
        return cells.split("|")

    ours, alike = row("**kan_kernels (native)**"), row("MLP, same widths")
    times = [[float(re.findall(r"[\d.]+", cell)[0]) for cell in cells] for cells in (ours, alike)]
    ratios = [a / b for a, b in zip(*times, strict=True)]
    said = (f"{min(ratios):.1f}", f"{max(ratios):.1f}")
    assert re.findall(r"([\d.]+) to\s([\d.]+) times in this table", page) == [said]
    assert re.findall(r"slower, ([\d.]+) to ([\d.]+) times", readme) == [said]
    same = [float(re.findall(r"\(([\d.]+)x\)", cell)[0]) for cell in ours]
    assert f"**{min(same):.2f} to {max(same):.2f} times**" in readme
    (elsewhere,) = re.findall(
        r"over all rows \| (\S+ to \S+) \|", (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    )
    assert f"were {elsewhere}" in page  # the less flattering machine


def test_digits_of_the_readme() -> None:
    """Hidden values leave the cells where knots are never moved, and hardly any where they are."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 8 - 1, torch.tensor(data.target)

    def outside(updates: tuple[int, ...]) -> float:
        torch.manual_seed(0)
        model = KAN([64, 64, 10])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(300):
            if step in updates:
                update_grid(model, x)
            rows = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        knots = model.layers[1].grid
        with torch.no_grad():
            hidden = model.layers[0](x)
        return float(((hidden < knots[:, 3]) | (hidden >= knots[:, -4])).float().mean())

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"(\d+)% of the hidden values ended outside", readme)
    assert abs(100 * outside(()) - int(said)) < 8 and outside((20, 50, 100)) < 0.01
