"""The reference for a window: frozen bins, and sketches of the reference's own
windows.
"""
