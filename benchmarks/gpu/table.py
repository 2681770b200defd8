"""Look-ups in a GPU report, and the figures that are worked out from its times."""

from __future__ import annotations

from typing import Any

from ..document import Table, add_mlp_ratios, fastest
from .plan import EXECUTIONS, Job, find_job
from .providers import AUTO
from .roofline import fraction


class GpuTable(Table):
    """A report document by job, mode, provider and execution."""

    key = ("job", "mode", "provider", "execution")

    @property
    def jobs(self) -> list[str]:
        """Names of the jobs with any result, in the order they ran."""
        return list(dict.fromkeys(r["job"] for r in self.results))

    def in_job(self, job: str) -> list[str]:
        """Return the keys of the providers with any result."""
        return list(dict.fromkeys(r["provider"] for r in self.results if r["job"] == job))

    def best(
        self, job: str, mode: str, provider: str, ways: tuple[str, ...] = EXECUTIONS
    ) -> dict[str, Any] | None:
        """Return the provider's fastest timed execution among ``ways``, or None."""
        return fastest(self.timed(job, mode, provider, way) for way in ways)

    def user_gets(self, job: str) -> str:
        """The provider whose figures a user gets: the automatic choice, or the one backend it chooses."""
        names = set(self.document.get("automatic", {}).get(job, []))
        if len(names) == 1 and any(r["provider"] == f"ours-{next(iter(names))}" for r in self.results):
            return f"ours-{next(iter(names))}"
        return AUTO


def add_figures(document: dict[str, Any]) -> None:
    """Ratios to both MLPs in the same execution, our roofline fraction, memory in units of the signals."""
    table = GpuTable(document)
    for r in table.results:
        job = find_job(r["job"])
        add_mlp_ratios(table, r)
        if "median_ms" in r and r["kind"] == "ours" and document.get("peaks"):
            r.update(fraction(job, r["mode"], 1e-3 * r["median_ms"], document["peaks"]))
        if r.get("peak_extra_bytes") is not None:
            r["peak_extra_signals"] = r["peak_extra_bytes"] / signal_bytes(job)


def signal_bytes(job: Job) -> int:
    """Bytes of x, y and their gradients in the job's dtype: the unit of the memory target."""
    return job.workload.signal_bytes() * job.precision.dtype.itemsize // 4


def job_json(job: Job) -> dict[str, Any]:
    """What the report says of a job's workload."""
    about = job.workload.to_json()
    return {**about, "headline": job.headline, "signal_bytes": signal_bytes(job)}
