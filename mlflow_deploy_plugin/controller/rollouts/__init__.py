"""Rollouts: a new version takes the traffic step by step, by what is measured of it, or goes; and the way back."""
