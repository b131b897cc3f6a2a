"""Monitors on a schedule: which window is judged when, by whom, and what happens where that fails."""
