"""The kinds of monitor, one module each with `judge(request)`, which returns the result of the window.

They raise OnnxserveError if the log is down, and RegistryUnavailable if MLflow does not answer.
"""
