"""Monitors: a schedule of windows, judged under leases, and tried again after failures."""
