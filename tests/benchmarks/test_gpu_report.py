"""`make gpu` without a GPU: the whole report on the CPU, with whatever can go wrong going wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))  # benchmarks is not installed with the package

from benchmarks.children import Ended  # noqa: E402
from benchmarks.gpu import measurements, suite  # noqa: E402
from benchmarks.gpu.cli import main  # noqa: E402
from benchmarks.gpu.measurements import Measured, run_jobs  # noqa: E402
from benchmarks.gpu.plan import SMOKE_JOBS, find_job  # noqa: E402
from benchmarks.gpu.worker import Task, blank  # noqa: E402
from benchmarks.workloads import FORWARD, TRAIN  # noqa: E402
from kan_kernels._core import library  # noqa: E402


def report(*arguments: str, path: str = "", timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks.gpu` with `path` in front of the import path."""
    paths = os.pathsep.join(p for p in (path, str(PROJECT)) if p)
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which child processes import."""
    paths = os.pathsep.join(
        [str(tmp_path), str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    )
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_one_sentence(tmp_path: Path) -> None:
    """Status 1, one sentence, nothing written."""
    done = report("--output", str(tmp_path / "gpu.json"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("make gpu needs a GPU")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--only", "tea"], "unknown stage 'tea'"),
        (["--device", "cpu"], "--smoke"),
        (["--report", "--output", "/nowhere/gpu.json"], "make gpu"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names what is wrong."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status in (1, 2) and words in capsys.readouterr().err


@pytest.mark.long
def test_whole_report(tmp_path: Path) -> None:
    """Every stage with tiny sizes on the CPU; then the report again from its JSON, without matplotlib."""
    results = PROJECT / "benchmarks" / "results"
    before = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    path = tmp_path / "smoke.json"
    done = report("--device", "cpu", "--smoke", "--output", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    statuses = {stage["name"]: stage["status"] for stage in document["stages"]}
    assert statuses == {
        "build": "skipped", "gpu tests": "ok", "headline benchmarks": "ok", "shared tests": "ok",
        "other benchmarks": "ok", "cost model": "ok" if "cuda" in library.DEVICES else "skipped",
        "sanitizer": "skipped",
    }  # fmt: skip
    assert set(document["gates"]) == set(SMOKE_JOBS) == {r["job"] for r in document["results"]}
    for job in SMOKE_JOBS:
        for provider in (
            "ours-native",
            "ours-reference",
            "mlp-params",
            "mlp-widths",
            "closed-form",
            "textbook",
        ):
            (cell,) = [
                r for r in document["results"]
                if (r["job"], r["mode"], r["provider"], r["execution"]) == (job, TRAIN, provider, "eager")
            ]  # fmt: skip
            assert cell["status"] == "ok" and cell["median_ms"] > 0 and cell["peak_extra_bytes"] >= 0
            assert cell["p25_ms"] <= cell["median_ms"] <= cell["p75_ms"]
            assert cell["dtype"] and cell["tf32"] is False
            assert ("roofline_fraction" in cell) is (cell["kind"] == "ours")
    absent = {
        (r["provider"], r["execution"]): r["reason"] for r in document["results"] if r["status"] == "absent"
    }
    assert absent["mlp-params", "CUDA graph"] == "CUDA graphs need a GPU"
    assert "ours-triton" in {provider for provider, _ in absent}
    assert absent["ours-auto", "eager"].startswith("chooses native")
    assert document["tests"]["the shared suite on this device"]["passed"] > 0
    text = path.with_suffix(".md").read_text()
    assert ("## Cost model: measured over counted" in text) is ("cuda" in library.DEVICES)
    assert "No GPU was used" in text and "| MLP, same parameters | torch.compile |" in text
    if importlib.util.find_spec("matplotlib") is not None:
        assert path.with_name("smoke-ratios.png").exists() and "![smoke-ratios.png]" in text

    (tmp_path / "shadow").mkdir()
    for module in ("matplotlib", "rich", "tqdm"):
        code = f"raise ModuleNotFoundError('no {module}', name='{module}')"
        (tmp_path / "shadow" / f"{module}.py").write_text(code)
    again = report("--report", "--output", str(path), path=str(tmp_path / "shadow"))
    assert again.returncode == 0, again.stderr
    bare = path.with_suffix(".md").read_text()
    assert "No plots: this needs 'matplotlib'" in bare
    assert bare.split("No plots")[0] == text.split("No plots")[0].split("![smoke")[0]
    assert {p: p.read_bytes() for p in results.rglob("*") if p.is_file()} == before


FAULTS = """
    import os, signal, time
    from benchmarks.gpu.device import Device
    from benchmarks.gpu.providers import GPU_PROVIDERS, register
    from benchmarks.providers import find_provider
    from benchmarks.workloads import TRAIN

    class Fault(type(find_provider("textbook"))):
        def refuses(self, workload, mode):
            return None if mode == TRAIN else "once is enough"

    class Crash(Fault):
        key = "crash"
        def build(self, problem, mode):
            os.kill(os.getpid(), signal.SIGSEGV)

    class Hang(Fault):
        key = "hang"
        def build(self, problem, mode):
            time.sleep(1000)

    class Poison(Fault):
        key = "poison"
        def build(self, problem, mode):
            Device.alive = lambda device: False
            raise RuntimeError("an illegal memory access was encountered")

    class Wrong(Fault):
        key, kind = "wrong", "ours"
        def build(self, problem, mode):
            model = super().build(problem, mode)
            model.module[0].base_weight.data.mul_(1.01)
            return model

    others = dict(GPU_PROVIDERS)
    GPU_PROVIDERS.clear()  # the faults first: nobody has to be built again and again before them
    for kind in FAULTS:
        register(kind())
    GPU_PROVIDERS.update(others)
"""


def measure(folder: Path, faults: str, limit: float, stall: float) -> Measured:
    """One tiny job with the faulty providers named in `faults`."""
    (folder / "faulty.py").write_text(textwrap.dedent(FAULTS).replace("FAULTS", faults))
    return run_jobs(Task(["smoke-layer/fp32"], "cpu", True, plugins=["faulty"]), limit, stall)


@pytest.mark.long
def test_faults_cost_themselves_alone(on_path: Path) -> None:
    """One provider crashes, one hangs, one breaks the device, one is wrong: the others keep their figures."""
    measured = measure(on_path, "(Crash, Hang, Poison, Wrong)", 120, 10)
    cells = {(r["provider"], r["mode"], r["execution"]): r for r in measured.results}
    assert len(cells) == len(measured.results)
    for provider in ("ours-native", "mlp-params", "textbook", "closed-form"):
        assert all("median_ms" in cells[provider, mode, "eager"] for mode in (TRAIN, FORWARD))
    found = {name: cells[name, TRAIN, "eager"] for name in ("crash", "hang", "poison", "wrong")}
    assert {r["status"] for n, r in found.items() if n != "wrong"} == {"failed"}
    assert "signal 11 (SIGSEGV)" in found["crash"]["reason"]
    assert "out of time" in found["hang"]["reason"]
    assert "illegal memory access" in found["poison"]["reason"]
    assert found["wrong"]["status"] == "gated" and "median_ms" not in found["wrong"]
    assert len(measured.faults) == 3 and not measured.cut


class Script:
    """Stands in for workers: what each sends, and then silence until it is stopped."""

    workers: list[list[dict[str, Any]]] = []  # noqa: RUF012
    tasks: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, module: str, text: str, limit: float, stall: float) -> None:
        assert module == "benchmarks.gpu.worker"
        Script.tasks.append(json.loads(text))
        self.events, self.limit, self.ended = Script.workers.pop(0), limit, Ended(-9, True, "")

    def __iter__(self) -> Iterator[str]:
        yield from map(json.dumps, self.events)
        if self.events[-1]["event"] not in ("done", "dead"):
            time.sleep(self.limit)


def scripted(
    monkeypatch: pytest.MonkeyPatch, limit: float, *workers: list[dict[str, Any]]
) -> tuple[Measured, list[dict[str, Any]]]:
    monkeypatch.setattr(measurements, "Lines", Script)
    monkeypatch.setattr(measurements, "START", 0.0)
    Script.workers, Script.tasks = list(workers), []
    return run_jobs(Task(["toy/fp32", "net64/fp32"], "cpu", True), limit, 1.0), Script.tasks


def test_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage at the end of its time says what it was at and what it did not do; what was reported stays."""
    cell = {**blank(find_job("toy/fp32"), TRAIN, "textbook", "eager"), "status": "ok"}
    at = f"toy/fp32|{FORWARD}|textbook|eager"
    events = [{"event": "cell", "result": cell}, {"event": "busy", "cell": at}]
    measured, tasks = scripted(monkeypatch, 0.3, events)
    assert measured.results == [cell] and len(tasks) == 1
    assert measured.cut == ["toy/fp32, forward", "net64/fp32, forward+backward", "net64/fp32, forward"]
    assert measured.faults == [f"stopped at the stage's end while at {at}"]


def test_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fault of the device, another worker goes on without the culprit and repeats nothing."""
    cell = {**blank(find_job("toy/fp32"), TRAIN, "textbook", "eager"), "status": "ok"}
    culprit = f"toy/fp32|{FORWARD}|ours-triton|eager"
    dead = {"event": "dead", "cell": culprit, "reason": "illegal address"}
    first = [{"event": "cell", "result": cell}, dead]
    measured, tasks = scripted(monkeypatch, 30, first, [{"event": "done"}])
    assert tasks[1]["done"] == [f"toy/fp32|{TRAIN}"] and "illegal address" in tasks[1]["skip"][culprit]
    assert len(measured.faults) == 1 and "illegal address" in measured.faults[0]
    assert measured.results == [cell]


def test_culprit_of_a_mode_never_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table names the culprit even where no worker came back to its mode."""
    first = [{"event": "dead", "cell": f"toy/fp32|{TRAIN}|ours-triton|eager", "reason": "illegal address"}]
    busy = {"event": "busy", "cell": f"toy/fp32|{TRAIN}|textbook|eager"}
    measured, _ = scripted(monkeypatch, 0.3, first, [busy])
    (lost,) = measured.results
    assert (lost["provider"], lost["status"]) == ("ours-triton", "failed")
    assert "illegal address" in lost["reason"] and len(measured.faults) == 2 and len(measured.cut) == 4


@pytest.mark.long
def test_a_stage_without_time(tmp_path: Path) -> None:
    """A stage for which no time is left is named, and the report is written all the same."""
    path = tmp_path / "late.json"
    done = report(
        "--device", "cpu", "--smoke", "--only", "headline benchmarks,sanitizer", "--seconds", "12",
        "--output", str(path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stages = {stage["name"]: stage for stage in json.loads(path.read_text())["stages"]}
    assert stages["headline benchmarks"]["status"] == "cut" and stages["sanitizer"]["status"] == "skipped"
    assert "headline benchmarks: all of it" in path.with_suffix(".md").read_text()


PRETEND = "import pretend_gpu; pretend_gpu.install()"


@pytest.mark.long
def test_the_gpu_path(on_path: Path) -> None:
    """The code that only a GPU reaches, on a pretended one: events, graphs, moving, no mixed devices."""
    (on_path / "pretending.py").write_text(PRETEND)
    task = Task(["smoke-layer/fp32"], "cuda", True, peaks=True, plugins=["pretending"])
    measured = run_jobs(task, 100, 60)
    assert not measured.faults and not measured.cut and measured.peaks is not None
    cells = {(r["provider"], r["mode"], r["execution"]): r for r in measured.results}
    for provider in ("ours-native", "mlp-params", "mlp-widths", "closed-form", "textbook"):
        for mode in (TRAIN, FORWARD):
            for execution in ("eager", "CUDA graph"):
                cell = cells[provider, mode, execution]
                assert cell["status"] == "ok" and cell["median_ms"] > 0, cell
                assert cell["gate"]["errors"] or cell["kind"] == "mlp"
    eager = cells["ours-native", TRAIN, "eager"]
    assert set(eager["gate"]["errors"]) == {"y", "dx", "d_spline0", "d_base0"}
    assert "memory_allocated" in eager["memory_method"]


@pytest.mark.long
def test_the_gpu_tests(on_path: Path) -> None:
    """tests/backends/test_gpu.py itself on the pretended GPU: streams, graphs, synchronisation, strides."""
    (on_path / "sitecustomize.py").write_text(PRETEND)
    chosen = "stream or graph or synchron or mixed or automatic"
    section = suite.run_tests(suite.GPU_TESTS, "cuda", ["reference", "native"], 1, 120, chosen)
    assert section["failed"] == section["crashed"] == section["not_run"] == 0, section["failures"]
    assert section["passed"] >= 6 and not section["problems"]


def test_pretended_gpu_finds_faults() -> None:
    """The pretended GPU can say no: mixed devices, host synchronisation, a graph of nothing."""
    from harness import child

    code = f"""
import torch
{PRETEND}
x = torch.randn(3, device="cuda")
for wrong in (lambda: x + torch.randn(3), lambda: x.numpy(), lambda: torch.cuda.CUDAGraph().replay()):
    try:
        wrong()
    except (RuntimeError, TypeError, AssertionError):
        continue
    raise SystemExit("a mistake went unseen")
torch.cuda.set_sync_debug_mode("error")
for wrong in (x[0].item, x.cpu, x.nonzero):
    try:
        wrong()
    except RuntimeError:
        continue
    raise SystemExit("a synchronisation went unseen")
print("seen")
"""
    assert "seen" in child(code)
