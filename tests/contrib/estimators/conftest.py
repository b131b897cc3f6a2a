from tests.wrap.conftest import installation_is_read_once, tracking

__all__ = ["installation_is_read_once", "tracking"]
