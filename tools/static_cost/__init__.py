"""The machine-code reader: ``python -m tools.static_cost --help``.

What the hot loop of a kernel costs, read from its cubin.

No GPU is needed and none is used. Everything here is an upper bound from instruction counts and documented
rates: it knows nothing of latency, cache misses, bank conflicts or clocks, and says which pipe would bound a
perfect schedule.
"""
