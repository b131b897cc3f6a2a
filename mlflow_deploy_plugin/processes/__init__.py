"""Child processes: started in a group of their own, ended as a whole, and described in words when they have ended.

`child.py` has both ends of a parent and its child, and the children of a process that reaps everything in one place;
`worker.py` calls functions in a process of its own; `spark.py` has Spark's session.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
