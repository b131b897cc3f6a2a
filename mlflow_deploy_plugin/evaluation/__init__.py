"""Evaluation of a model version on rows: metrics, robustness and explanations.

Names are imported lazily: gate policies are read without numpy, and only explanations need shap.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
