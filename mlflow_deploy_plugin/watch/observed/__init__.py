"""Observed endpoints: models that another server serves, whose rows are read from a
source.
"""
