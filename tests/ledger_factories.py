"""What the listener and a worker would bring to the ledger."""

from dicom_node.archive import ArchivedFile
from dicom_node.domain import Admission, Decision, DeclineReason, Prediction, TargetResult
from dicom_node.ledger import Received

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
