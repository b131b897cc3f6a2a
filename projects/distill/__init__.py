"""A small student that learns from the answers of a served model."""
