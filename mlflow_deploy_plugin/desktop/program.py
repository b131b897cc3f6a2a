"""The start of a desktop program. PyInstaller runs this file; `exporter/desktop.py` builds the program."""

import argparse
import json
import sys
import tkinter
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.desktop import FACTS, MODEL
from mlflow_deploy_plugin.desktop.window import Window
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.runtime import OnnxModel


def main(folder: Path) -> None:
    """Open the window of the program in `folder`. With `--check`, predict arrays of a file without a display."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--check", nargs=2, type=Path, help="Write the outputs for the inputs of the graph, as .npz files."
    )
    check = parser.parse_args().check
    try:
        if not check:
            Window(folder / MODEL, json.loads((folder / FACTS).read_text())).root.mainloop()
            return
        tkinter.Tcl()  # Raises TclError if the program does not contain Tcl.
        model = OnnxModel.load(folder / MODEL)
        with np.load(check[0]) as arrays:  # Texts have a fixed width in the file.
            rows = [array.astype(object) if array.dtype.kind == "U" else array for array in arrays.values()]
        outputs = model.run(dict(zip([entry.name for entry in model.artifact.inputs], rows, strict=True)))
        np.savez(check[1], *(array.astype(str) if array.dtype == object else array for array in outputs.values()))
    except (OnnxserveError, OSError, tkinter.TclError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(Path(sys._MEIPASS))  # type: ignore[attr-defined] # PyInstaller sets the folder of the program's files.
