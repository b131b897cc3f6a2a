"""Runnable MLflow projects on real data; the entry points of `MLproject` call them as modules."""
