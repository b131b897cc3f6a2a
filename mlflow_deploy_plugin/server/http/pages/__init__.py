"""The pages of a server: try a model in the browser, and read what it takes. Templates, a stylesheet and scripts."""
