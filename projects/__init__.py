"""Runnable MLflow projects on real data. The entry points of `MLproject` and
`projects/*/MLproject` are modules.
"""
