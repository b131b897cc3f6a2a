from .csv_file import csv_records as csv_records
from .files import SPARK_TIMES as SPARK_TIMES
from .files import FileFormat as FileFormat
from .files import first_line as first_line
from .files import format_of as format_of
from .files import json_lines as json_lines
from .files import open_output as open_output
from .files import open_parquet as open_parquet
from .files import table_writer as table_writer
from .streams import group_tables as group_tables
from .streams import read_parquet as read_parquet

__all__: list[str]
