"""The parts of `benchmarks/drift.py`."""
