"""The side processes of a worker: mlflow, pandas and shap live here, not in the worker."""
