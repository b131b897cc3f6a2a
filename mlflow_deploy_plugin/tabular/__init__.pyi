from .files import FILE_FORMATS as FILE_FORMATS
from .files import SPARK_TIMES as SPARK_TIMES
from .files import FileFormat as FileFormat
from .files import atomic_file as atomic_file
from .files import compression_of as compression_of
from .files import csv_records as csv_records
from .files import first_line as first_line
from .files import format_of as format_of
from .files import json_lines as json_lines
from .files import open_input as open_input
from .files import open_output as open_output
from .files import open_parquet as open_parquet
from .files import output_format as output_format
from .files import table_writer as table_writer
from .files import unfinished_target as unfinished_target
from .files import value_writer as value_writer
from .files import values_of as values_of
from .streams import MAX_BYTES as MAX_BYTES
from .streams import RejectedRow as RejectedRow
from .streams import RowBlock as RowBlock
from .streams import RowStream as RowStream
from .streams import read_parquet as read_parquet
from .streams import read_table as read_table
from .streams import require_few_values as require_few_values

__all__: list[str]
