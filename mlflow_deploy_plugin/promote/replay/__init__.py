"""Captured requests, computed again: a single prediction, and the traffic of a window
against a candidate.
"""
