"""The agents and the network of `benchmarks/promotion.py`."""
