"""Data drift: sketches of columns, the reference, and the threshold from the
reference's own windows.
"""
