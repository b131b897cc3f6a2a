"""Monitoring: judge the rows of a window, log the report, record and send alerts.

Other rooms import from here. A name's module is loaded when the name is imported: judging brings Evidently, scipy and
pandas, which the command line and the controller do without.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
