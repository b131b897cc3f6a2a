"""Metrics of labelled rows with their intervals, and estimates of metrics without
labels, for the kinds of monitors.
"""
