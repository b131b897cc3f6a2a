"""WATCH: the inference log, the windows of its event time, the verdict about each, and the report that MLflow keeps."""
