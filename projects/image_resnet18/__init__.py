"""ResNet18 that recognises scikit-learn's digits, served with pictures in the browser."""
