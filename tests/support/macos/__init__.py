"""A Mac as far as a program can ask, on Linux: by this folder on PYTHONPATH, as `sitecustomize.py` says."""

from pathlib import Path

MACOS = Path(__file__).parent
