"""Compile `trees.cc` for x86-64 with zig's C++ compiler, which comes as a wheel. The
library needs no other library than glibc 2.17, so it fits every Python.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LEVELS = {
    "avx2": ["-march=x86_64_v3"],
    "avx512": ["-march=x86_64_v4", "-mprefer-vector-width=512"],
}
"""The options of each instruction set; the library selects one of them for the CPU."""
COMPILER = [
    *(sys.executable, "-m", "ziglang", "c++"),
    *("-target", "x86_64-linux-gnu.2.17"),
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    "-fno-slp-vectorize",  # It turns the descent of large trees into gathers: 2.5 times slower.
]
PROJECT = Path(__file__).parent
SOURCE = str(PROJECT / "trees.cc")
TESTED = " ".join((PROJECT / "tested_versions.txt").read_text().split())
"""The releases of ONNX Runtime that the library accepts."""


class Compile(build_py):
    """Add the library to the package."""

    def run(self) -> None:
        super().run()
        with TemporaryDirectory() as folder:
            objects = [f"{folder}/operator.o"]
            tested = f'-DTESTED="{TESTED}"'
            subprocess.run([*COMPILER, tested, "-c", SOURCE, "-o", *objects], check=True)
            for level, options in LEVELS.items():
                objects.append(f"{folder}/{level}.o")
                options = [*options, f"-DLEVEL={level}", "-c", SOURCE, "-o", objects[-1]]
                subprocess.run([*COMPILER, *options], check=True)
            library = Path(self.build_lib, "onnxserve_trees", "trees.so")
            subprocess.run([*COMPILER, "-shared", "-s", "-o", library, *objects], check=True)


class Wheel(bdist_wheel):
    """A wheel for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", "manylinux_2_17_x86_64"


class Binary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(distclass=Binary, cmdclass={"build_py": Compile, "bdist_wheel": Wheel})
