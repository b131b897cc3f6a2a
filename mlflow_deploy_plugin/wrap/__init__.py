"""WRAP: convert a trained model to ONNX, check it against the original, evaluate,
optimize and export it.
"""
