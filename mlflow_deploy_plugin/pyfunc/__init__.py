"""The side process that answers for a model without an ONNX form: mlflow and pandas live here, not in the worker."""
