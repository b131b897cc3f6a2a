"""The desktop program of a version: a window with predictions and a local server,
without a network or a registry.
"""

MODEL = "model"
FACTS = "program.json"
"""The MLmodel folder of a program, and the file with the facts about its version, both
next to its libraries.
"""
