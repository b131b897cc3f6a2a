"""Topics of texts: found by NMF over TF-IDF, and served as a classifier of new texts."""
