"""Alembic's environment: the URL comes from the caller, the target is the ledger's metadata."""

from alembic import context
from sqlalchemy import create_engine, pool

from dicom_node.tables import Base


def run() -> None:
    """The migrations ran, each in its own transaction."""
    url = context.config.attributes["url"]
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
