"""The inbox of pushed events (`core/store/inbox.py`). A revision that changes the table
must first write the form of 0016 here.
"""

from alembic import op

from mlflow_deploy_plugin.core.store.tables import Base

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    Base.metadata.tables["onnxserve_inbox"].create(op.get_bind())
