"""Batches, and the profiles of monitored windows, on a Spark cluster."""
