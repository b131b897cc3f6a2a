"""Monitoring: judge the rows of a window, log the report, and record and send alerts."""
