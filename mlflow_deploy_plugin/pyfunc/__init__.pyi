from .explainer import RowContributions as RowContributions
from .explainer import explain_rows as explain_rows
from .explainer import most_background_rows as most_background_rows
from .explainer import read_background as read_background
from .process import error_summary as error_summary
from .process import load_failure as load_failure
from .process import version_differences as version_differences
from .scorer import load_scorer as load_scorer

__all__: list[str]
