"""Pieces of `benchmarks/drift.py`."""
