"""CONTROL: what MLflow's registry says. Only functions here that need it import mlflow."""
