"""What users of MLServer and of KServe's servers need to go on unchanged."""
