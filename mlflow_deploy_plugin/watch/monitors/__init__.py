"""Monitors: schedule windows, judge each window under a lease, and retry failed
windows.
"""
