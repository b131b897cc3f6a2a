"""The schema of the first release, which the tables in `core/store/tables.py` create.

The revisions 0001 to 0016 are of builds before the first release, whose stores are
rejected.
"""

revision = "0017"
down_revision = None


def upgrade() -> None:
    """Change nothing, because no released version has created an older store."""
