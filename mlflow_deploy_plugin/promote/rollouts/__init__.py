"""Rollouts: shift the traffic to a new version step by step, or roll the version
back.
"""
