"""The parts of `benchmarks/public_shifts.py`."""
