"""The start of a desktop program. PyInstaller runs this file; `exporter/desktop.py` builds the program."""

import argparse
import json
import sys
import tkinter
from pathlib import Path

from mlflow_deploy_plugin import protocols
from mlflow_deploy_plugin.desktop import FACTS, MODEL
from mlflow_deploy_plugin.desktop.window import Window
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.protocols import JSON
from mlflow_deploy_plugin.runtime import OnnxModel


def main(folder: Path) -> None:
    """Open the window of the program in `folder`, or write the outputs of a request (`--check`), without a display."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", nargs=2, type=Path, help="Predict a JSON body of /invocations, and write outputs.")
    check = parser.parse_args().check
    try:
        if not check:
            Window(folder / MODEL, json.loads((folder / FACTS).read_text())).root.mainloop()
            return
        tkinter.Tcl()  # Raises TclError if the program does not contain Tcl.
        model = OnnxModel.load(folder / MODEL)
        outputs = model.run(protocols.mlflow.decode(JSON, check[0].read_bytes(), model.schema))
        check[1].write_text(json.dumps({name: array.tolist() for name, array in outputs.items()}))
    except (OnnxserveError, OSError, tkinter.TclError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(Path(sys._MEIPASS))  # type: ignore[attr-defined] # PyInstaller sets the folder of the program's files.
