"""Convert scikit-learn estimators and boosters of XGBoost, LightGBM and CatBoost with
skl2onnx.
"""
