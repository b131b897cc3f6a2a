"""CONTRIB: what only some users need. README.md has the rule."""
