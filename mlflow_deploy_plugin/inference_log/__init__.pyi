from .label_files import BadRow as BadRow
from .label_files import LabelColumns as LabelColumns
from .query import Query as Query
from .query import run_query as run_query
from .reader import InferenceLog as InferenceLog
from .reader import View as View
from .reader import open_log as open_log
from .scan import microseconds_of as microseconds_of
from .stats import Watermark as Watermark
from .stats import read_watermarks as read_watermarks
from .storage import DAY as DAY
from .storage import LogLocation as LogLocation
from .storage import locate_log as locate_log
from .storage import write_file as write_file
from .tables import Sample as Sample
from .tables import concat_tables as concat_tables
from .windows import EPOCH as EPOCH
from .windows import HOUR_US as HOUR_US
from .windows import TimeRange as TimeRange
from .windows import Window as Window
from .windows import microseconds as microseconds
from .windows import parse_window as parse_window

__all__: list[str]
