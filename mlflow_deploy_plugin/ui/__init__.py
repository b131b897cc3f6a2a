"""The MLflow app plugin and the console page."""
