"""`dicom-node explain`: everything behind a result, printed for a person or as JSON."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydicom.uid import UID
from rich.console import Console
from rich.text import Text

from dicom_node.explanation import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dicom_node.explanation import (
        Answer,
        Delivery,
        Explanation,
        Image,
        Made,
        Release,
        ReportName,
        Request,
        Retraction,
        Screening,
        StudyReport,
        Transition,
        Try,
    )

_WIDTH = 13


def explain(
    context: typer.Context,
    uid: Annotated[
        str,
        typer.Argument(
            metavar="UID",
            help="SOP Instance UID of a result, a rejection note or a received image, Study Instance UID, "
            "or Transaction UID of a storage commitment.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print everything behind a result: image, bundle, thresholds, outputs, times, objects, deliveries, proofs."""
    from dicom_node.database import Database
    from dicom_node.explain import explain as explained

    with closing(Database(context.obj.settings.database_dsn)) as database:
        database.check_schema()
        found = explained(database, uid.strip())
    if as_json:
        typer.echo(json.dumps(asdict(found), default=_as_json, indent=2))
        return
    console = Console(highlight=False)
    for line in lines(found):
        shown = "".join(letter if letter.isprintable() else " " for letter in line)  # some of it came over the network
        console.print(Text(shown, style="" if line.startswith(" ") else "bold"), soft_wrap=True)


def lines(found: Explanation) -> Iterator[str]:
    """The explanation as a person reads it: what begins at the margin is a heading."""
    yield f"{found.uid} is {_KINDS[found.kind]}"
    if found.transaction is not None:
        yield f"asked of {found.transaction.request.destination}: {_asked(found.transaction.request)}"
        for made in found.transaction.objects:
            yield from _made(made, with_study=True)
    for image in found.images:
        yield from _image(image)
    for report in found.reports:
        yield from _report(report)
    for retraction in found.retractions:
        yield from _retraction(retraction)
    for release in found.releases:
        yield from _release(release)


_KINDS = {
    "heatmap": "a heatmap",
    "report": "a report",
    "note": "a rejection note",
    "image": "a received image",
    "study": "a study",
    "transaction": "a request for storage commitment",
}


def _image(image: Image) -> Iterator[str]:
    yield f"image {image.sop_instance_uid}"
    size = f"{image.size_bytes / 1e6:.1f} MB" if image.size_bytes >= 1e5 else f"{image.size_bytes} bytes"
    yield _line("what", f"{image.modality}, {_named(image.sop_class_uid)}, {_named(image.transfer_syntax_uid)}, {size}")
    yield _line("study, series", f"{image.study_instance_uid}, {image.series_instance_uid}")
    yield _line("received", f"{_time(image.received_at)} from {image.calling_ae_title}")
    yield _line("file", _file(image.path, image.sha256))
    by = f", by {', '.join(image.evidence)}" if image.evidence else ", the header says nothing of it"
    yield _line("header", f"view {image.view}, body part {image.body_part}{by}")
    for note in image.notes:
        yield _line("put right", note)
    for resend in image.resends:
        came = f"{_time(resend.received_at)} from {resend.calling_ae_title}"
        yield _line(resend.kind, f"{came}, {_file(resend.path, resend.sha256)}")
    for screening in image.screenings:
        yield from _screening(screening)


def _screening(screening: Screening) -> Iterator[str]:
    told = f"{screening.state}, {screening.purpose}, round {screening.round}, {screening.bundle} {screening.release}"
    yield _line("screening", told)
    if screening.reason or screening.detail:
        yield _line("because", ": ".join(filter(None, (screening.reason, screening.detail))), 4)
    yield _line("attempts", f"{screening.attempt}, of which {screening.failures} failed", 4)
    yield _line("times", _times(screening.transitions), 4)
    for answer in screening.answers:
        yield _line(answer.target, _answer(answer), 4)
    for member in dict.fromkeys(output.member for output in screening.outputs):
        values = (f"{one.output} {one.value:.6g}" for one in screening.outputs if one.member == member)
        yield _line(member, ", ".join(values), 4)
    if screening.remarks:
        yield _line("remarks", ", ".join(screening.remarks), 4)
    for path, sha256 in dict.fromkeys((one.path, one.sha256) for one in screening.maps):
        held = ", ".join(f"{one.member}/{one.name}" for one in screening.maps if one.path == path)
        yield _line("maps", f"{held}: {_file(path, sha256)}", 4)
    for made in screening.objects:
        yield from _made(made, 4)
    if (later := screening.replaced_by) is not None:
        yield _line("replaced by", f"round {later.round}, {later.bundle} {later.release}", 4)


def _answer(answer: Answer) -> str:
    told = f"{answer.decision.replace('_', ' ')}, probability {answer.probability:.6g}, threshold {answer.threshold:g}"
    if answer.origin is Origin.BUNDLE:
        return f"{told} (the bundle's, {answer.operating_point})"
    if (site := answer.site) is None:
        return f"{told} (the site's)"
    return (
        f"{told} (the site's version {site.version}, by {site.set_by} at {_time(site.set_at)}, from {_one(site.basis)})"
    )


def _report(report: StudyReport) -> Iterator[str]:
    yield f"report of study {report.study_instance_uid}, version {report.version}"
    yield _line("issued", f"{_time(report.issued_at)}, {report.purpose}, {report.bundle} {report.release}")
    for source in report.sources:
        yield _line("tells of", f"{source.sop_instance_uid}, round {source.round}")
    for replaced in report.replaces:
        yield _line("replaces", _report_name(replaced))
    if report.replaced_by is not None:
        yield _line("replaced by", _report_name(report.replaced_by))
    for made in report.objects:
        yield from _made(made)


def _report_name(name: ReportName) -> str:
    return f"version {name.version} of {name.bundle} {name.release}, {', '.join(name.sop_instance_uids)}"


def _retraction(retraction: Retraction) -> Iterator[str]:
    yield f"retraction {retraction.number} of study {retraction.study_instance_uid}"
    told = f"{_time(retraction.at)} by {_one(retraction.asked_by)}, for {retraction.reason}"
    yield _line("taken back", f"{told}: {_one(retraction.comment)}" if retraction.comment else told)
    if not retraction.notes:
        yield _line("note", "none: nothing had been sent")
    for note in retraction.notes:
        yield from _made(note)


def _made(made: Made, indent: int = 2, *, with_study: bool = False) -> Iterator[str]:
    taken = f", taken back by retraction {made.retraction}" if made.retraction and made.kind != "note" else ""
    yield _line(made.kind, f"{made.sop_instance_uid}, {_named(made.sop_class_uid)}{taken}", indent)
    if with_study:
        yield _line("study", made.study_instance_uid, indent + 2)
    yield _line("made", f"{_time(made.made_at)}, {_file(made.path, made.sha256)}", indent + 2)
    for delivery in made.deliveries:
        yield from _delivery(delivery, indent + 2)
    if not made.deliveries:
        yield _line("to", "nobody", indent + 2)


def _delivery(delivery: Delivery, indent: int) -> Iterator[str]:
    due = f", next at {_time(delivery.due_at)}" if delivery.due_at else ""
    counted = f"tries: {delivery.tries}, proofs asked for: {delivery.proofs}"
    yield _line("to", f"{delivery.destination}: {delivery.state} ({counted}{due})", indent)
    for attempt in delivery.log:
        yield _line("", f"{_time(attempt.at)} {_told(attempt)}", indent)
    for request in delivery.commitments:
        yield _line("", f"storage commitment {request.transaction_uid}: {_asked(request)}", indent)


def _told(attempt: Try) -> str:
    status = "" if attempt.status is None else f"0x{attempt.status:04X}"
    return ", ".join(filter(None, (status, attempt.meaning, attempt.detail and _one(attempt.detail))))


def _asked(request: Request) -> str:
    answered = f"answered {_time(request.answered_at)}" if request.answered_at else "not answered"
    return f"asked {_time(request.requested_at)}, {answered}"


def _release(release: Release) -> Iterator[str]:
    yield f"bundle {release.bundle} {release.release}: {release.title}"
    screens = "screens now" if release.active else "does not screen now"
    yield _line("known since", f"{_time(release.registered_at)}; it {screens}")
    yield _line("Device UID", f"{release.device_uid}, weights {release.weights_sha256}")
    for target in release.targets:
        points = ", ".join(f"{name} {threshold:g}" for name, threshold in target.thresholds.items())
        yield _line(target.name, f"{target.title}; in force {target.operating_point}, of {points}")
    for member in release.members:
        told = f"{member.version}, {member.architecture}, Device UID {member.device_uid}"
        yield _line(member.name, f"{told}, weights {member.weights_sha256}")


def _times(transitions: Sequence[Transition]) -> str:
    """The first change of state with its time, each other by the seconds since then."""
    told: list[str] = []
    for step in transitions:
        since = (step.at - transitions[0].at).total_seconds()
        claim = f" ({step.attempt})" if step.to_state == "claimed" else ""
        told.append(f"{step.to_state}{claim} {f'+{since:.1f} s' if told else _time(step.at)}")
    return ", ".join(told)


def _line(label: str, text: str, indent: int = 2) -> str:
    return f"{' ' * indent}{label:<{_WIDTH}} {text}"


def _file(path: str | None, sha256: str) -> str:
    """The archive's name of a file, which holds its digest."""
    if path is None:
        return f"not kept, SHA-256 {sha256}"
    return f"{path} (its SHA-256)" if sha256 in path else f"{path}, SHA-256 {sha256}"


def _named(uid: str) -> str:
    return UID(uid).name


def _one(text: str) -> str:
    """What a person or a peer wrote, on one line."""
    return " ".join(text.split())


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _as_json(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError(type(value).__name__)
