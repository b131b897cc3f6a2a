"""Generate `docs/reference.md` and the Helm chart's schema from the fields of spec and
settings.

Run `python docs/make_reference.py` after changing a field.
"""

import json
from pathlib import Path

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import field_reference
from mlflow_deploy_plugin.core.spec.types import field_descriptions
from mlflow_deploy_plugin.ship.manifests.helm import values_schema

PAGE = Path(__file__).with_name("reference.md")
SCHEMA = Path(__file__).parents[1] / "docker" / "helm" / "onnxserve" / "values.schema.json"

HEAD = """# Reference

Made by `python docs/make_reference.py` from `core/spec/` and `core/settings.py`; a test holds it \
equal to them.

## Fields of an endpoint

`mlflow deployments create|update -t onnxserve … -C NAME=VALUE`, \
and `onnxserve serve -C NAME=VALUE`. In a spec file the
same names are nested keys. `variants.NAME.` is one of the endpoint's variants, \
`monitors.NAME.` one of its monitors.

| field | type | default | |
|---|---|---|---|
"""

SETTINGS = """
## Settings of a process

From the environment.

| variable | default | |
|---|---|---|
"""


def reference() -> str:
    """Return the page as Markdown."""
    rows = [
        _row(name, default, description, kind)
        for name, kind, default, description in field_reference()
    ]
    settings = [
        _row(
            f"ONNXSERVE_{name.upper()}",
            str(field.default or ""),
            field_descriptions(Settings)[name],
        )
        for name, field in Settings.model_fields.items()
    ]
    return HEAD + "".join(rows) + SETTINGS + "".join(settings)


def schema() -> str:
    """Return the schema of the chart's values as JSON."""
    return json.dumps(values_schema(), indent=1) + "\n"


def _row(name: str, default: str, description: str, *more: str) -> str:
    cells = [f"`{name}`", *more, f"`{default}`" if default else "", description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(reference())
    SCHEMA.write_text(schema())
