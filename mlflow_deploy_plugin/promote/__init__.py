"""PROMOTE: the gate, the evidence about a version, replays of captured requests, and
rollouts.
"""
