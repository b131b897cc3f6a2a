"""Optimization: create smaller or faster forms of a version.

optimize   create a form, compare its loss and speed with the base, and register it
           (`optimizer.py`)
forms      8-bit integers, 16-bit floats (`forms.py`)
"""
