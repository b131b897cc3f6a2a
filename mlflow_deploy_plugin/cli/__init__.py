"""The command `onnxserve`. `commands.py` imports the module of a command on demand."""
