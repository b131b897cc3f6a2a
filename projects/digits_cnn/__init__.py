"""Which digit is this? A small convolutional network on scikit-learn's 8 × 8 pixel digits."""
