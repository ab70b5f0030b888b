"""What a storage commitment report says, however it comes."""

from io import BytesIO

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from pynetdicom import dsutils

from dicom_node.commitment import (
    INVALID_ARGUMENT_VALUE,
    NO_SUCH_EVENT_TYPE,
    PROCESSING_FAILURE,
    FailureReason,
    Remedy,
    ReportError,
    read_report,
    remedy_of,
)


def item(uid, reason=None):
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = SecondaryCaptureImageStorage, uid
    if reason is not None:
        ds.FailureReason = reason
    return ds


def information(committed=(), failed=(), transaction="1.2.3"):
    ds = Dataset()
    ds.TransactionUID = transaction
    if committed:
        ds.ReferencedSOPSequence = [item(uid) for uid in committed]
    if failed:
        ds.FailedSOPSequence = [item(uid, reason) for uid, reason in failed]
    return ds


def as_received(ds, implicit=False):
    return decoded(dsutils.encode(ds, implicit, True), implicit)


def decoded(content, implicit=False):
    return dsutils.decode(BytesIO(content), implicit, True)


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit VR", "implicit VR"])
def test_committed_and_failed_objects_are_told_apart(implicit):
    ds = as_received(information(["1.1", "1.2"], [("1.3", 0x0112), ("1.4", 0x0119)]), implicit)
    report = read_report(2, ds)
    assert report.transaction_uid == "1.2.3"
    assert report.committed == ("1.1", "1.2")
    assert report.failed == {"1.3": 0x0112, "1.4": FailureReason.CLASS_INSTANCE_CONFLICT}


def test_an_object_that_is_named_twice_counts_once_and_one_named_as_failed_too_has_failed():
    report = read_report(2, as_received(information(["1.1", "1.1", "1.2"], [("1.2", 0x0110)])))
    assert report.committed == ("1.1",)
    assert report.failed == {"1.2": 0x0110}


def test_what_failed_in_a_report_of_success_has_failed():
    assert read_report(1, information(["1.1"], [("1.2", 0x0112)])).failed == {"1.2": 0x0112}


def test_a_failure_without_a_reason_is_a_processing_failure():
    assert read_report(2, information([], [("1.1", None)])).failed == {"1.1": FailureReason.PROCESSING_FAILURE}


def test_a_report_cannot_be_changed():
    with pytest.raises(TypeError):
        read_report(2, information([], [("1.1", 0x0112)])).failed["1.1"] = 0


@pytest.mark.parametrize("event_type", [None, 0, 3])
def test_another_event_is_answered_as_such(event_type):
    with pytest.raises(ReportError, match="EventTypeID") as raised:
        read_report(event_type, information(["1.1"]))
    assert raised.value.status == NO_SUCH_EVENT_TYPE


def without_instance():
    ds = information(["1.1"])
    del ds.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    return ds


def no_sequence():
    ds = information()
    ds.add_new("ReferencedSOPSequence", "LO", "1.1")
    return ds


def reason_as_text():
    ds = information()
    ds.FailedSOPSequence = [item("1.1")]
    ds.FailedSOPSequence[0].add_new("FailureReason", "LO", "no room")
    return ds


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    ("told", "tag"),
    [
        (Dataset, "(0008,1195)"),
        (lambda: information(["1.1"], transaction=""), "(0008,1195)"),
        (lambda: information(["1.1"], transaction="../../x"), "(0008,1195)"),
        (information, "(0008,1198)"),
        (without_instance, "(0008,1155)"),
        (lambda: information(["Muster^Erika"]), "(0008,1155)"),
        (no_sequence, "(0008,1199)"),
        (reason_as_text, "(0008,1197)"),
    ],
)
def test_an_illegal_report_is_refused_by_the_name_of_its_tag(told, tag):
    with pytest.raises(ReportError) as raised:
        read_report(1, told())
    assert raised.value.status == INVALID_ARGUMENT_VALUE
    assert tag in str(raised.value)
    assert "Muster" not in str(raised.value)


def test_what_cannot_be_parsed_is_a_processing_failure():
    reason = b"\x08\x00\x55\x11UI\x04\x001.1\x00" + b"\x08\x00\x97\x11US\x03\x00abc"
    failed = b"\x08\x00\x98\x11SQ\x00\x00\x1f\x00\x00\x00\xfe\xff\x00\xe0\x17\x00\x00\x00" + reason
    broken = b"\x08\x00\x95\x11UI\x06\x001.2.3\x00" + failed
    with pytest.raises(ReportError, match="cannot be parsed") as raised:
        read_report(1, decoded(broken))
    assert raised.value.status == PROCESSING_FAILURE


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (0x0110, Remedy.ASK_AGAIN),
        (0x0131, Remedy.ASK_AGAIN),
        (0x0213, Remedy.ASK_AGAIN),
        (0x0112, Remedy.SEND_AGAIN),
        (0x0119, Remedy.NONE),
        (0x0122, Remedy.NONE),
        (0xBEEF, Remedy.ASK_AGAIN),
    ],
)
def test_every_failure_reason_has_its_remedy(reason, remedy):
    assert remedy_of(reason) == remedy
