"""What a worker and the side process of a pyfunc read in a body of `/invocations`
themselves: key columns, and the header of a CSV text.
"""

from collections.abc import Collection

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.core.messages import wrong_separator

BODY_FORMS = frozenset({"dataframe_split", "dataframe_records", "instances", "inputs"})
"""The fields of a JSON body, of which exactly one is present. Chats and prompts have
none of these fields.
"""


def take_column(
    document: dict[str, object],
    name: str,
) -> list[object] | None:
    """Remove a column from a JSON document of `/invocations`, and return its values;
    None if the column is missing.
    """
    form = next((form for form in BODY_FORMS if form in document), None)
    content = document[form] if form else document  # The document of a chat is itself the row.
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        if all(name not in row for row in content):
            return None
        values = []
        for row in content:
            values.append(row.pop(name, None))
        return values
    if not isinstance(content, dict):
        return None
    if form == "dataframe_split":
        columns = content.get("columns")
        rows = content.get("data")
        if not isinstance(columns, list) or name not in columns or not isinstance(rows, list):
            return None
        if any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
            return None  # MLflow rejects such a table.
        position = columns.index(name)
        columns.pop(position)
        return [row.pop(position) for row in rows]
    value = content.pop(name, None)
    if isinstance(value, list | None):
        return value
    return [value]


def check_separator(body: bytes, names: Collection[str]) -> None:
    """Raise SchemaMismatch if the header of a CSV separates the names of columns with
    another mark than a comma.
    """
    header = body[: max(body.find(b"\n"), 0)]
    if b"," not in header:
        line = header.decode("utf-8-sig", "replace").rstrip("\r")
        if line not in names and (reason := wrong_separator([line], names)):
            raise SchemaMismatch(reason)
