"""Rollouts: a new version takes the traffic step by step as it proves itself, or is rolled back."""
