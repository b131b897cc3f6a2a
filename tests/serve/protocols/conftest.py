"""The servers that the tests of each protocol use."""

from tests.serve.conftest import bias_folders as bias_folders
from tests.serve.conftest import model_folders as model_folders
from tests.serve.conftest import serve_here as serve_here
