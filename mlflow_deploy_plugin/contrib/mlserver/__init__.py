"""The answers of MLServer and of KServe's servers."""
