"""Alerts: `record.py` writes due messages to the store, and `send.py` sends them over
the configured channels.

The functions of both modules raise StoreUnavailable if the store is not available.
"""
