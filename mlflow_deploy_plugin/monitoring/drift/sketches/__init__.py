"""Sketches of columns: frozen bins, counts, and how they are stored."""
