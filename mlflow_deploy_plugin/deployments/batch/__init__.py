"""Predictions for a file: `reading.py` cuts it into batches, `answering.py` asks, `writing.py` keeps the answers."""
