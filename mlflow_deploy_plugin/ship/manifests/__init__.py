"""Specs as documents for other platforms. `formats.py` lists the formats. Nothing here
applies the documents.
"""
