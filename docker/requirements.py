"""Print the requirements of an image from setup.cfg, one per line: the base and the
given extras.

    python requirements.py --serve grpc redis > serving.txt

With `--serve`, packages that are used only to wrap and deploy models are omitted: no
process of a serving image imports them (tests/docker/test_requirements.py checks this
with the import graph).
"""

import sys
from configparser import ConfigParser

NOT_TO_SERVE = {"alembic", "onnx", "pandas", "prometheus-client", "sqlalchemy"}

setup = ConfigParser()
setup.read("setup.cfg")
extras = setup["options.extras_require"]


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def brought_by(extra: str) -> list[str]:
    """Return the requirements of an extra, including the requirements of extras that it
    names.
    """
    found = []
    for line in lines_of(extras[extra]):
        if line.startswith("mlflow-onnxserve["):
            found += [
                one
                for name in line.partition("[")[2].strip("]").split(",")
                for one in brought_by(name)
            ]
        else:
            found.append(line)
    return found


asked = [argument for argument in sys.argv[1:] if argument != "--serve"]
wanted = [
    *lines_of(setup["options"]["install_requires"]),
    *(line for extra in asked for line in brought_by(extra)),
]
for line in wanted:
    if "--serve" not in sys.argv or line.split()[0] not in NOT_TO_SERVE:
        sys.stdout.write(f"{line}\n")
