"""Alerts: messages to people when a monitor's window raises an alarm, when it is over, and when a monitor fails.

`record.py` writes into the store what has to be sent, and `send.py` sends it over the channels of the configuration.
Their functions raise StoreUnavailable if the store cannot be used.
"""
