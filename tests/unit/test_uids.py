from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from dicom_node import uids
from dicom_node.uids import ReportedImage

WHEN = datetime(2024, 1, 2, 23, 45, 6, 789000, tzinfo=UTC)
LATER = WHEN + timedelta(milliseconds=1)
HEATMAP = {
    "source_sop_instance_uid": "1.2.3",
    "bundle": "starter",
    "release": "1",
    "operating_point": "balanced",
    "thresholds": {"covid": 0.5},
    "weights_sha256": "aa",
    "size": 1024,
    "answer": "bb",
    "predicted_at": WHEN,
}
IMAGE = ReportedImage("1.2.3", "1.2.4", {"covid": "balanced"}, {"covid": 0.5}, WHEN)
REPORT = {
    "study_uid": "1.2",
    "images": (IMAGE, replace(IMAGE, sop_instance_uid="1.2.5")),
    "bundle": "starter",
    "release": "1",
    "sop_class": "1.2.840.10008.5.1.4.1.1.88.34",
    "weights_sha256": "aa",
    "node_ae_title": "CXRSCREEN",
    "codes": {"covid": ("840539006", "SCT", "COVID-19")},
    "predecessors": ("1.2.6", "1.2.7"),
}


def test_a_uid_is_legal_and_at_most_44_characters_long() -> None:
    uid = uids.derive_uid("heatmap", "1.2.3", "ä" * 300)
    assert uid.is_valid
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid)


def test_the_same_parts_give_the_same_uid_for_ever() -> None:
    # A literal: a changed namespace or a changed joining would rename every result ever sent.
    assert uids.derive_uid("a", "b") == "2.25.168884763215236443368102488344293213907"


def test_where_one_part_ends_and_the_next_begins_matters() -> None:
    assert len({uids.derive_uid("a", "bc"), uids.derive_uid("ab", "c"), uids.derive_uid('a", "bc')}) == 3


@pytest.mark.parametrize("changed", HEATMAP)
def test_whatever_decides_the_heatmap_decides_its_uid(changed: str) -> None:
    other = HEATMAP | {
        changed: {"size": 512, "thresholds": {"covid": 0.25}, "predicted_at": LATER}.get(changed, "other")
    }
    assert uids.heatmap_uid(**HEATMAP) == uids.heatmap_uid(**HEATMAP)  # type: ignore[arg-type]
    assert uids.heatmap_uid(**HEATMAP) != uids.heatmap_uid(**other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"images": (IMAGE,)},
        *(
            {"images": (replace(IMAGE, **changed), replace(IMAGE, sop_instance_uid="1.2.5"))}
            for changed in (
                {"sop_instance_uid": "1.2.8"},
                {"heatmap": ""},
                {"operating_points": {"covid": "site"}},
                {"thresholds": {"covid": 0.25}},
                {"predicted_at": LATER},
            )
        ),
        {"codes": {"covid": ("840539006", "SCT", "Covid")}},
        {"codes": {"pneumonia": ("840539006", "SCT", "COVID-19")}},
        {"predecessors": ("1.2.6",)},
        *({name: "other"} for name in REPORT if name not in ("images", "codes", "predecessors")),
    ],
    ids=str,
)
def test_whatever_decides_the_report_decides_its_uid(other: dict[str, Any]) -> None:
    assert uids.report_uid(**REPORT) == uids.report_uid(**REPORT)  # type: ignore[arg-type]
    assert uids.report_uid(**REPORT) != uids.report_uid(**REPORT | other)  # type: ignore[arg-type]


def test_the_order_of_images_and_predecessors_does_not_matter() -> None:
    turned = {name: tuple(reversed(REPORT[name])) for name in ("images", "predecessors")}  # type: ignore[call-overload]
    assert uids.report_uid(**REPORT) == uids.report_uid(**REPORT | turned)  # type: ignore[arg-type]


def test_another_version_of_the_program_names_its_results_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = uids.heatmap_uid(**HEATMAP), uids.report_uid(**REPORT), uids.node_uid("A")  # type: ignore[arg-type]
    monkeypatch.setattr(uids, "__version__", "99")
    after = uids.heatmap_uid(**HEATMAP), uids.report_uid(**REPORT), uids.node_uid("A")  # type: ignore[arg-type]
    assert not set(before) & set(after)


def test_the_order_of_thresholds_does_not_matter() -> None:
    one = uids.heatmap_uid(**HEATMAP | {"thresholds": {"a": 0.1, "b": 0.2}})  # type: ignore[arg-type]
    two = uids.heatmap_uid(**HEATMAP | {"thresholds": {"b": 0.2, "a": 0.1}})  # type: ignore[arg-type]
    assert one == two


def test_the_time_of_a_prediction_is_the_same_in_every_time_zone() -> None:
    elsewhere = WHEN.astimezone(timezone(timedelta(hours=9)))
    assert uids.heatmap_uid(**HEATMAP) == uids.heatmap_uid(**HEATMAP | {"predicted_at": elsewhere})  # type: ignore[arg-type]


def test_an_algorithm_trained_anew_is_another_device() -> None:
    assert uids.device_uid("zhang", "1", "aa") != uids.device_uid("zhang", "1", "bb")
    assert uids.device_uid("zhang", "1", "aa") != uids.device_uid("zhang", "2", "aa")


def test_each_role_has_its_own_uids() -> None:
    same = ("1", "2", "3")
    made = {uids.derive_uid(*same), uids.device_uid(*same), uids.tracking_uid(*same, "x"), uids.series_uid("1")}
    assert len(made) == 4
    assert uids.tracking_uid("1", "b", "r", "target covid") != uids.tracking_uid("1", "b", "r", "member covid")


def test_the_implementation_version_name_fits_its_vr() -> None:
    assert len(uids.IMPLEMENTATION_VERSION_NAME) <= 16
    assert uids.IMPLEMENTATION_CLASS_UID.is_valid


NOTE = {"study_uid": "1.2", "sop_instance_uids": ["1.2.3", "1.2.4"], "reason": "quality", "node_ae_title": "CXRSCREEN"}


@pytest.mark.parametrize("changed", NOTE)
def test_whatever_decides_the_rejection_note_decides_its_uid(changed: str) -> None:
    other = NOTE | {changed: {"sop_instance_uids": ["1.2.3"]}.get(changed, "other")}
    assert uids.note_uid(**NOTE) != uids.note_uid(**other)  # type: ignore[arg-type]
    again = NOTE | {"sop_instance_uids": ["1.2.4", "1.2.3"]}
    assert uids.note_uid(**NOTE) == uids.note_uid(**again)  # type: ignore[arg-type]
