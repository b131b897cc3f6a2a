"""The gate, which checks a version against a policy before its promotion, and the
promotion.
"""
