"""Topics of texts, which are found by NMF on TF-IDF and served as a classifier of new
texts.
"""
