"""Optimization: smaller and faster forms of a version, and where its time goes.

optimize   make a form, compare its loss and speed with its base, register it (`optimizer.py`)
forms      8-bit integers, 16-bit floats, pruned weights (`forms.py`, `fine_tuning.py`)
profile    ONNX Runtime's profiler, read back (`profiler.py`)
"""
