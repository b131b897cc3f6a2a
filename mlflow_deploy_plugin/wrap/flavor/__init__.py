"""The flavor: convert a trained model to ONNX, check it against the original, and save
it in MLflow's format.

log_model / save_model   convert → prove parity → save (`wrap/convert/`, `wrap.py`,
                         `parity.py`, `saved_model.py`)
wrap_registered          the same steps for a registered model (`registered.py`)
load_model               load a saved model as `serve.runtime.model.OnnxModel`
_load_pyfunc             the function that `mlflow.pyfunc.load_model` calls (`save.py`)
"""
