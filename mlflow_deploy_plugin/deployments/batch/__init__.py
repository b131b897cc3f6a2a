"""Batch prediction: every row of a file by a deployment or a model, one prediction a row."""
