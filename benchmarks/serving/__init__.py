"""What `benchmarks/serve.py` is made of: models, peers in environments of their own, a load client, works, a table."""
