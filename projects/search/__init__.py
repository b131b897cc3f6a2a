"""A search for the best model of the delayed flights with Optuna,
followed by the gate.
"""
