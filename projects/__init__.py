"""Runnable MLflow projects on real data. The entry points in `MLproject` run the projects as modules."""
