"""The spool: captured requests and feedback in files on disk, which workers write and
the agent reads.
"""
