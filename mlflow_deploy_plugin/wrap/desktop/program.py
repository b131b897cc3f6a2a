"""The start of a desktop program. PyInstaller runs this file;
`wrap/exporter/desktop.py` builds the program.
"""

import json
import pickle
import sys
import tkinter
from pathlib import Path
from urllib.request import urlopen

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.embed import local_server
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.desktop import FACTS, MODEL
from mlflow_deploy_plugin.wrap.desktop.window import ProgramWindow


def main(folder: Path, arguments: list[str]) -> None:
    """Open the window of the program in `folder`, or run a check of the export without
    a display.
    """
    try:
        match arguments:
            case []:
                facts = json.loads((folder / FACTS).read_text())
                ProgramWindow(folder / MODEL, facts).root.mainloop()
            case ["--check", rows, outputs]:
                tkinter.Tcl()  # Raises TclError if the program does not contain Tcl.
                model = OnnxModel.load(folder / MODEL)
                # The export wrote the file.
                feeds = model.schema.from_columns(pickle.loads(Path(rows).read_bytes()))
                Path(outputs).write_bytes(pickle.dumps(model.run(feeds)))
                with local_server(folder / MODEL, "check", "1", "127.0.0.1", "0") as url:
                    urlopen(f"{url}/docs").close()
            case _:
                sys.exit("usage: the program has no arguments; it opens a window")
    except (OnnxserveError, OSError, tkinter.TclError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(Path(sys._MEIPASS), sys.argv[1:])  # type: ignore[attr-defined] # the folder of the files, from PyInstaller
