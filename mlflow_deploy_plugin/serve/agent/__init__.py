"""The agent: a process next to the workers that follows the registry, fetches versions
and ships the spool.
"""
