"""What users of MLServer and KServe have: their folders, settings and model files."""
