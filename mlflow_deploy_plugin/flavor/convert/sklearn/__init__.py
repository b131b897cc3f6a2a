"""scikit-learn estimators and pipelines, and boosters of XGBoost, LightGBM and CatBoost, converted by skl2onnx.

| module               | content                                                              |
|----------------------|----------------------------------------------------------------------|
| `conversion.py`      | the forms of an estimator, and the call of skl2onnx                  |
| `estimators.py`      | the parts of a fitted estimator, and the graph's inputs              |
| `stand_ins.py`       | estimators that stand in for others                                  |
| `libraries/`         | stand-ins for category_encoders, feature-engine, interpret and skrub |
| `convertible.py`     | the copy of an estimator that skl2onnx converts correctly            |
| `graph.py`           | nodes, casts and outputs of the graph                                |
| `boundary_values.py` | thresholds, categories and terms, for the parity rows                |
| `boosters.py`        | the trees of XGBoost, LightGBM and CatBoost                          |
| `trees.py`           | trees as arrays, and as a node                                       |
| `levels.py`          | boosted trees for many rows                                          |
| `nets.py`            | nets of skorch, and TabNet's regressor                               |
| `refused_rows.py`    | rows that a step within the original refuses                         |
| `formulas/`          | estimators as formulas of numpy, which are written as graphs         |
"""

from mlflow_deploy_plugin.flavor.convert.sklearn.conversion import forms, known_values, read_batch

__all__ = ["forms", "known_values", "read_batch"]
