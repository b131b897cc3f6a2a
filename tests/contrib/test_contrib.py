"""The rules of the rim (mlflow_deploy_plugin/contrib/README.md)."""

import ast
import re
from pathlib import Path

PACKAGE = "mlflow_deploy_plugin"
RIM = Path(PACKAGE, "contrib")


def public_names():
    """Return the names in the last table of docs/extend.md, with their modules."""
    table = Path("docs/extend.md").read_text().partition("## Public names")[2]
    return {
        f"{PACKAGE}.{module}.{name}"
        for module, names in re.findall(r"^\| `([\w.]+)` \| (.*) \|$", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }


def imported_names(folder):
    """Return what the modules of a folder import from the package."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE))


def test_contrib_imports_only_errors_and_public_names():
    rooms = [folder for folder in RIM.iterdir() if (folder / "__init__.py").exists()]
    names = set()
    for room in rooms:
        own = f"{PACKAGE}.contrib.{room.name}."
        known = own, f"{PACKAGE}.core.errors."
        names |= {name for name in imported_names(room) if not name.startswith(known)}
    assert names == public_names()


def test_readme_lists_every_room():
    rooms = {folder.parent.name for folder in RIM.glob("*/__init__.py")}
    assert (
        set(re.findall(r"^\| `(\w+)/` \|", (RIM / "README.md").read_text(), re.MULTILINE)) == rooms
    )
