"""The kinds of monitors, one module per kind.

The module of a kind has a function `judge(request)` that returns the result of the
window.

`judge` raises OnnxserveError if the log is unreachable, and RegistryUnavailable if
MLflow does not answer.
"""
