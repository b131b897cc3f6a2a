"""The prediction protocols of TensorFlow Serving, Vertex AI and Azure ML."""
