"""The evidence about a registered version: its record, and documents that are made from
the record.
"""
