"""Evaluation of a model version on rows: metrics, robustness and explanations."""
