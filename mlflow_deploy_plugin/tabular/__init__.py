"""Files of rows: CSV, JSON, JSON Lines and Parquet, read record by record and written whole or not at all.

pyarrow is imported when a Parquet file is read or written; `--help` imports this room.
"""

from mlflow_deploy_plugin.tabular.files import (
    FILE_FORMATS,
    FileFormat,
    atomic_file,
    format_of,
    open_input,
    open_output,
    output_format,
)
from mlflow_deploy_plugin.tabular.read import CsvRecord, csv_records, first_line, json_lines, open_parquet, read_table
from mlflow_deploy_plugin.tabular.write import table_writer, value_writer, values_of

__all__ = [
    "FILE_FORMATS",
    "CsvRecord",
    "FileFormat",
    "atomic_file",
    "csv_records",
    "first_line",
    "format_of",
    "json_lines",
    "open_input",
    "open_output",
    "open_parquet",
    "output_format",
    "read_table",
    "table_writer",
    "value_writer",
    "values_of",
]
