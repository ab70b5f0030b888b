"""Alembic's environment: the URL comes from the caller, the target is the ledger's metadata."""

from alembic import context
from sqlalchemy import create_engine, event, pool

from dicom_node.tables import Base


def run() -> None:
    """The migrations ran, all of them or none: a process killed half way leaves the schema as it was."""
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    sqlite = engine.dialect.name == "sqlite"
    if sqlite:  # the driver would commit before every DDL statement; BEGIN is ours instead
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.connect() as connection:
        context.configure(
            connection=connection, target_metadata=Base.metadata, render_as_batch=sqlite, transactional_ddl=True
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
