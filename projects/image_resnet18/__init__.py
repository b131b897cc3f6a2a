"""A ResNet18 that recognises scikit-learn's digits and accepts pictures in the browser."""
