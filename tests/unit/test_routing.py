import pytest

from dicom_node.config import Peer, Settings
from dicom_node.domain import ObjectKind
from dicom_node.routing import destinations


def peer(name, **rules):
    return Peer(name=name, ae_title=name, host="127.0.0.1", port=104, **({"destination": True} | rules))


SETTINGS = Settings(
    peers=(
        peer("pacs"),
        peer("asker", destination=False),
        peer("triage", only_flagged=True),
        peer("reports", objects=["report"]),
        peer("room", senders=["ROOM1", "ROOM2"]),
    )
)


@pytest.mark.parametrize(
    ("kind", "flagged", "senders", "expected"),
    [
        (ObjectKind.HEATMAP, False, ["CT"], ["pacs"]),
        (ObjectKind.HEATMAP, True, ["CT"], ["pacs", "triage"]),
        (ObjectKind.REPORT, False, ["CT"], ["pacs", "reports"]),
        (ObjectKind.REPORT, True, ["ROOM2", "CT"], ["pacs", "triage", "reports", "room"]),
    ],
)
def test_a_destination_gets_what_its_rules_name(kind, flagged, senders, expected):
    assert destinations(SETTINGS, kind, flagged=flagged, senders=senders) == expected
