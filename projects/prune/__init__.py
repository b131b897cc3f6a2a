"""Smaller and faster forms of a torch network: pruned, trained further, quantized."""
