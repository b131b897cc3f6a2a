"""Sketches of columns: frozen bins, counts, and storage."""
