"""The migration, which Alembic runs, in the connection and transaction that
`core/store/database.py` has opened.
"""

from alembic import context

from mlflow_deploy_plugin.core.store.tables import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
