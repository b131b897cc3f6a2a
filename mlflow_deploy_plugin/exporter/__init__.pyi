from .exporting import export as export

__all__: list[str]
