"""WATCH: judge the rows of a window, log the report, record and send alerts, and
retrain after an alarm.
"""
