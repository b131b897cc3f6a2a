"""Images that serve one model: the server's image with a layer for the model."""
