"""A simulated Mac on Linux, for programs with this folder on PYTHONPATH; see
`sitecustomize.py`.
"""

from pathlib import Path

MACOS = Path(__file__).parent
