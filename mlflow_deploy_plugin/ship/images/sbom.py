"""List the packages that are installed in an image, as a bill of materials: `onnxserve
list-packages`.

The format is CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/). It contains the
Python distributions and, if dpkg is available, Debian packages, but no times or random
numbers, so that equal images produce equal documents.
"""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from urllib.parse import quote


def bill_of_materials() -> dict[str, object]:
    """Return the CycloneDX document of the packages that are installed here."""
    components = [
        _component(
            "pypi",
            package.name.lower().replace("_", "-"),
            package.version,
            package.metadata.json.get("license_expression"),
        )
        for package in distributions()
    ]
    if shutil.which("dpkg-query"):
        listed = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${Version} ${Architecture}\n"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        release = platform.freedesktop_os_release()
        system = release.get("ID", "debian")
        distro = f"{system}-{release.get('VERSION_ID', '')}".rstrip("-")
        for name, version, architecture in map(str.split, listed.splitlines()):
            qualifiers = f"?arch={architecture}&distro={distro}"
            components.append(_component(f"deb/{system}", name, version, qualifiers=qualifiers))
    unique = {str(component["purl"]): component for component in components}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": list(map(unique.__getitem__, sorted(unique))),
    }


def _component(
    kind: str, name: str, version: str, licence: object = None, qualifiers: str = ""
) -> dict[str, object]:
    """Return the entry of a package in the bill of materials.

    Args:
        kind: the type of its package URL, such as `pypi`.
        licence: an SPDX expression; None if it is unknown.
        qualifiers: the end of its package URL, from the question mark.
    """
    purl = f"pkg:{kind}/{quote(name)}@{quote(version, safe='')}{qualifiers}"
    component: dict[str, object] = {
        "type": "library",
        "name": name,
        "version": version,
        "purl": purl,
        "bom-ref": purl,
    }
    if licence:
        component["licenses"] = [{"expression": licence}]
    return component


def main(_arguments: Sequence[str]) -> int:
    """Print the bill of materials, for `onnxserve list-packages`."""
    json.dump(bill_of_materials(), sys.stdout, indent=1)
    return 0
