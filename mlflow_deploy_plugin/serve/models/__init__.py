"""The versions in a worker's memory: repository, loading, routing, side processes and
model control.
"""
