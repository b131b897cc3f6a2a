"""A simulated Windows on Linux, for programs with this folder on PYTHONPATH; see
`sitecustomize.py`.
"""

from pathlib import Path

WINDOWS = Path(__file__).parent
