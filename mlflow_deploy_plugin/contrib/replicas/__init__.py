"""Several replicas of a server of all registered models, behind a stock nginx that
sends each model to the same replica.
"""
