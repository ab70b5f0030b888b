"""What the listener and a worker would bring to the ledger."""

from dicom_node.archive import ArchivedFile, Product
from dicom_node.claims import Claims
from dicom_node.domain import Admission, Decision, DeclineReason, ObjectKind, Prediction, TargetResult
from dicom_node.ledger import Ledger, Received
from dicom_node.reports import Reports

HEATMAP_CLASS = "1.2.840.10008.5.1.4.1.1.7"
REPORT_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"

ADMITTED = Admission(None, "PA", "chest", ("ViewPosition", "BodyPartExamined"))
LATERAL = Admission(DeclineReason.LATERAL, "lateral", "chest", ("ViewPosition",))


def received(number=1, admission=ADMITTED, sha256="a" * 64, **changed):
    values = {
        "sop_instance_uid": f"1.2.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1",
        "study_instance_uid": f"1.3.{number}",
        "series_instance_uid": f"1.4.{number}",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": sha256,
        "size_bytes": 10,
        "file": ArchivedFile(f"aa/{sha256}.dcm", sha256, 10) if admission.admitted else None,
        "calling_ae_title": "MODALITY",
        "modality": "CR",
        "admission": admission,
    }
    return Received(**(values | changed))


def prediction(manifest):
    return Prediction(
        bundle=manifest.name,
        release=manifest.release,
        operating_point="balanced",
        targets=tuple(
            TargetResult(target.name, 0.123456789012345, 0.5, Decision.NOT_FLAGGED, operating_point="balanced")
            for target in manifest.targets
        ),
        members={"zhang": {"p_cls": 0.1, "p_ano": -0.75, "p_avg": -0.025}},
    )


def product(kind, sop_instance_uid, sop_class_uid=None):
    sop_class_uid = sop_class_uid or (HEATMAP_CLASS if kind is ObjectKind.HEATMAP else REPORT_CLASS)
    digest = sop_instance_uid.replace(".", "")[-64:].rjust(64, "c")
    return Product(kind, sop_class_uid, sop_instance_uid, ArchivedFile(f"{digest[:2]}/{digest}.dcm", digest, 9))


def drawn(database, number="", destinations=("pacs",), **changed):
    """An instance was received and screened, and its heatmap ``2.25.{number}1`` is due; no report tells of it yet."""
    Ledger(database).record(received(f"9{number}", **changed))
    claims = Claims(database)
    claim = claims.claim("worker", 20)
    claims.save_prediction(claim, prediction(claim.manifest), None)
    heatmap = product(ObjectKind.HEATMAP, f"2.25.{number}1")
    claims.save_heatmap(claim, heatmap, list(destinations), ["StudyDate: illegal DA, emptied"])
    return claim


def told(database, sop_instance_uid, destinations=("pacs",)):
    """The report of the study that has waited longest is due; returns its id."""
    reports = Reports(database)
    draft = reports.draft(reports.due(0, 1)[0])
    return reports.issue(draft, product(ObjectKind.REPORT, sop_instance_uid), list(destinations))


def reported(database, number="", destinations=("pacs",), **changed):
    """Heatmap ``2.25.{number}1`` and report ``2.25.{number}2`` of a study of one image are due."""
    claim = drawn(database, number, destinations, **changed)
    told(database, f"2.25.{number}2", destinations)
    return claim
