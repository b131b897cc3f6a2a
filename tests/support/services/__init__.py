"""Real and simulated servers that the tests of several folders need."""
