"""Convert scikit-learn estimators and boosters of XGBoost, LightGBM and CatBoost with skl2onnx."""

from mlflow_deploy_plugin.flavor.convert.sklearn.conversion import forms, known_values, read_batch

__all__ = ["forms", "known_values", "read_batch"]
