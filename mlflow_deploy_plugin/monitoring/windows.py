"""Windows of event time; they are defined where the inference log is read."""

from mlflow_deploy_plugin.inference_log.windows import Window, microseconds, parse_window, window_at

__all__ = ["Window", "microseconds", "parse_window", "window_at"]
