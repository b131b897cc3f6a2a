"""Convert trained models to ONNX, with one module per framework. `converters.py`
selects the module.

Each module has `read_batch(model, data) -> ModelInput`, which converts the user's rows
to the model's input, and `forms(model, batch, predict_fn, dynamic_axes) -> Forms`.
Converters in other distributions (docs/extend.md) import from `converted.py`.
"""
