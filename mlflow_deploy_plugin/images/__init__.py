"""Images that serve one model: the server's image, and a layer with the model on it."""
