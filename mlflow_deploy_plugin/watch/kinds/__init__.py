"""The kinds of monitors, and what several kinds compute.

The module of a kind has a function `judge(request)` that returns the result of the window.

`judge` raises OnnxserveError if the log is unreachable, and RegistryUnavailable if MLflow does not answer.
"""
