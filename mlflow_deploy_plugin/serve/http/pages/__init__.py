"""The HTML pages of a server: `views.py` renders `templates/`, which load the files of
`static/`.
"""
