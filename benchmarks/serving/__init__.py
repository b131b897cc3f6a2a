"""The parts of `benchmarks/serve.py`: models, peers in separate environments, a load
client, works, a table.
"""
