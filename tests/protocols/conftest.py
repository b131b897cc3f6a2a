"""The servers that the tests ask by each protocol."""

from tests.server.conftest import bias_folders as bias_folders
from tests.server.conftest import model_folders as model_folders
from tests.server.conftest import serve_here as serve_here
