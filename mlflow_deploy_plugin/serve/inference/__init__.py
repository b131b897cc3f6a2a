"""The transport-independent request path: data plane, limits, response cache and
shadows.
"""
