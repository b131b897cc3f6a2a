"""Backends: the platforms that can run a deployment. `targets.py` has the table of
backends and their interface.
"""
