"""Alarms over time: the signed figures of windows, the detector of lasting shifts, and
the budget of alarms.
"""
