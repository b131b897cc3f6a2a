"""Disturb rows in the direction of the largest loss (docs/examine.md)."""
