"""The null distribution of a verdict: the reference's own windows, and the rate that they support."""
