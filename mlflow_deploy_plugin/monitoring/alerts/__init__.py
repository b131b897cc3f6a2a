"""Alerts: `record.py` writes into the store what has to be sent, and `send.py` sends it over the configured channels.

Their functions raise StoreUnavailable if the store cannot be used.
"""
