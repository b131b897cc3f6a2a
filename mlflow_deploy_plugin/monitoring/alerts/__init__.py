"""Alerts: `record.py` writes due messages to the store, and `send.py` sends them over the configured channels.

Their functions raise StoreUnavailable if the store is not available.
"""
