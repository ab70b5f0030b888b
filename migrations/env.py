"""Alembic's environment: the connection comes from the caller, the target is the ledger's metadata."""

from alembic import context

import dicom_node.retrospective.tables
import dicom_node.worklist.tables  # noqa: F401 - so are these
from dicom_node.tables import Base


def run() -> None:
    """The migrations ran, all of them or none: a process killed half way leaves the schema as it was."""
    given = context.config.attributes
    context.configure(
        connection=given["connection"],
        target_metadata=Base.metadata,
        render_as_batch=given["connection"].dialect.name == "sqlite",
        transactional_ddl=True,
        on_version_apply=given["on_version_apply"],
    )
    with context.begin_transaction():
        context.run_migrations()


run()
