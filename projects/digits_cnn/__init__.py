"""A small convolutional network that recognises scikit-learn's 8 × 8 pixel digits."""
