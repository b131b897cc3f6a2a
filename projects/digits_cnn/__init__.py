"""A small convolutional network that recognises scikit-learn's digits
of 8 × 8 pixels.
"""
