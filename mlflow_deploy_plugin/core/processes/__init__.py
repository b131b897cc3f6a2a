"""Child processes: each leads a process group, is stopped with all its descendants, and
reports its end.
"""
