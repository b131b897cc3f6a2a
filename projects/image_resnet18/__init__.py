"""A ResNet18 that recognises scikit-learn's digits and accepts images
in the browser.
"""
