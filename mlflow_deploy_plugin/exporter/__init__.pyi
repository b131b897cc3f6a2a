from .exporting import FORMATS as FORMATS
from .exporting import ExportedModel as ExportedModel
from .exporting import ExportFormat as ExportFormat
from .exporting import export as export

__all__: list[str]
