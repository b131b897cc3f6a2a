"""Servers that the tests of several rooms need, real ones and small ones of our own."""
