from .optimizer import ALL_RECIPES as ALL_RECIPES
from .optimizer import MeasuredForm as MeasuredForm
from .optimizer import Optimization as Optimization
from .optimizer import Recipe as Recipe
from .optimizer import choose as choose
from .optimizer import optimize as optimize
from .optimizer import try_forms as try_forms
from .profiler import GraphProfile as GraphProfile
from .profiler import draw as draw
from .profiler import profile as profile

__all__: list[str]
