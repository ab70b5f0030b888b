"""Commands on results that were made: send them again, make them anew, take them back."""

from __future__ import annotations

import getpass
from contextlib import closing
from typing import Annotated

import typer

from dicom_node.domain import NodeError, RejectionReason

Study = Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")]


class ArgumentError(NodeError):
    """The command was given too little."""

    reason = "argument"


def resend(
    context: typer.Context,
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY_UID]", help="All results of this study.", show_default=False)
    ] = None,
    destination: Annotated[str | None, typer.Option(help="Only to this peer.", show_default=False)] = None,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Everything that was rejected or could not be proven.")
    ] = False,
) -> None:
    """Send archived results again: the same objects under the same UIDs."""
    from dicom_node.database import Database
    from dicom_node.outbox import Outbox

    settings = context.obj.settings
    if (study is None) is not rejected:
        raise ArgumentError("say what is to be sent again: a STUDY_UID, or --rejected")
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        outbox = Outbox(database, retry_base_s=settings.retry_base_s, retry_max_s=settings.retry_max_s)
        count = outbox.send_again(destination=destination, study_instance_uid=study)
    typer.echo(f"{count} objects are sent again")


def rescreen(context: typer.Context, study: Study) -> None:
    """Screen a study anew by the active release and thresholds; the new report replaces the old one."""
    from dicom_node.rescreening import rescreen as wait_anew

    count = wait_anew(context.obj.settings, study)
    typer.echo(
        f"{count} images wait to be screened anew" if count else "nothing new could be said: nothing was changed"
    )


def retract(
    context: typer.Context,
    study: Study,
    reason: Annotated[RejectionReason, typer.Option(help="Why: for quality, or for the patient's safety.")],
    comment: Annotated[str, typer.Option(help="In words, for the ledger.")] = "",
    by: Annotated[str, typer.Option(help="Who takes it back; default: the user of this machine.")] = "",
) -> None:
    """Take back what the node has said of a study: a rejection note goes to where its objects are (IHE IOCM)."""
    from dicom_node.retraction import retract as take_back

    count, destinations = take_back(
        context.obj.settings, study, reason, comment=comment, asked_by=by or getpass.getuser()
    )
    where = f"a rejection note goes to {', '.join(destinations)}" if destinations else "none had been sent"
    typer.echo(f"took back {count} objects: {where}")
