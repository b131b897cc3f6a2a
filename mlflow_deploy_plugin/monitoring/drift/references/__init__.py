"""The reference that a window is compared with, as frozen bins and sketches of the reference's own windows."""
