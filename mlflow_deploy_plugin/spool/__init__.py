"""The spool: captured requests and feedback as bytes on disk, written by the workers and read by the agent.

`frames.py` has the segments and their checksummed frames, `captured_model.py` selects and masks columns, `codec.py`
encodes a request, `writer.py` appends it and `reader.py` reads whole segments.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
