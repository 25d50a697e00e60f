"""In Numba's place for `PYTHONPATH=tests/without`: everything has to work where Numba is not installed."""

raise ImportError("kept away by tests/without")
