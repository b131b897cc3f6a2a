from tests.serve.conftest import bias_folders, model_folders

__all__ = ["bias_folders", "model_folders"]
