"""The side processes of a worker. Only these processes import mlflow, pandas and shap."""
