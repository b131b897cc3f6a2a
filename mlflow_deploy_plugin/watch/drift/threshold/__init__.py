"""The null distribution of a verdict: the reference's own windows, and the false-alarm
rate that they support.
"""
