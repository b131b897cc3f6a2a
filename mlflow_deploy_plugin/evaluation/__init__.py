"""Evaluation of a version on rows: metrics, robustness and explanations.

A name is imported on first use: gate policies are read without numpy, and only explanations need shap.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
