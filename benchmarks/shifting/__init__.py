"""Verdicts and estimates on public data, with public methods next to ours."""
