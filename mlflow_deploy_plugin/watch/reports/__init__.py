"""The report of a judged window: its files, and its MLflow run."""
