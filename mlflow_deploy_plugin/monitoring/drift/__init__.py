"""Data drift: sketches of columns, the reference, and the threshold that its own windows give."""
