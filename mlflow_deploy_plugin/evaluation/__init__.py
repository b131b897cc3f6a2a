"""Evaluation of one version on rows: its metrics, its robustness to disturbed rows, and what explains its answers.

A name is imported from its module on first use: gate policies are read without numpy, and only explanations need shap.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
