"""Which headers are admitted, and which evidence decides."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from pydicom import Dataset, Sequence, uid
from pydicom.sr.codedict import codes

from dicom_node import anatomy
from dicom_node.admission import COMPANION_SOP_CLASSES, admit
from dicom_node.config import Settings
from dicom_node.domain import MANUFACTURER, MODEL_NAME, Admission, DeclineReason
from tests.factories import chest_dataset, code

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings()
SILENT = {"BodyPartExamined": None, "ViewPosition": None, "PatientOrientation": None}


def decide(**elements: Any) -> Admission:
    return admit(chest_dataset(**elements), SETTINGS)


def silent(**elements: Any) -> Admission:
    """A header that says nothing of body part and view, but for `elements`."""
    return decide(**{**SILENT, **elements})


def ours() -> Dataset:
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    return item


# What the object is.


def test_a_chest_pa_is_admitted_with_its_evidence() -> None:
    assert decide() == Admission(None, "PA", "chest", ("BodyPartExamined", "ViewPosition"))


def test_absent_evidence_is_no_refusal() -> None:
    assert silent() == Admission(None, "unknown", "unknown", ())


def test_our_own_results_are_declined_before_anything_else() -> None:
    own = decide(Manufacturer=MANUFACTURER, ManufacturerModelName=MODEL_NAME, SOPClassUID=uid.EnhancedSRStorage)
    assert own.reason == DeclineReason.OWN_RESULT
    derived = decide(ContributingEquipmentSequence=[Dataset(), ours()])
    assert (derived.reason, derived.evidence) == (DeclineReason.OWN_RESULT, ("ContributingEquipmentSequence",))


def test_another_makers_model_of_our_name_is_not_ours() -> None:
    assert decide(Manufacturer="Other", ManufacturerModelName=MODEL_NAME).admitted
    assert decide(Manufacturer=MANUFACTURER, ManufacturerModelName="Other").admitted


@pytest.mark.parametrize(
    "sop_class",
    [
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.SecondaryCaptureImageStorage,
    ],
)
def test_radiographs_and_secondary_captures_are_admitted(sop_class: str) -> None:
    assert decide(SOPClassUID=sop_class).admitted


@pytest.mark.parametrize(
    "sop_class",
    [
        uid.CTImageStorage,
        uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        *sorted(COMPANION_SOP_CLASSES),
        "1.2.3",
        None,
    ],
)
def test_any_other_sop_class_is_declined(sop_class: str | None) -> None:
    assert decide(SOPClassUID=sop_class).reason == DeclineReason.SOP_CLASS


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": uid.DigitalXRayImageStorageForProcessing, "Modality": "DX"},
        {"SOPClassUID": uid.DigitalXRayImageStorageForPresentation, "PresentationIntentType": "FOR PROCESSING"},
    ],
)
def test_an_image_for_processing_is_declined_unless_the_settings_accept_it(elements: dict[str, Any]) -> None:
    header = chest_dataset(**elements)
    assert admit(header, SETTINGS).reason == DeclineReason.FOR_PROCESSING
    assert admit(header, Settings(accept_for_processing=True)).admitted


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "cr ", None, "", ["CR", "DX"]])
def test_a_radiograph_says_so_or_says_nothing(modality: Any) -> None:
    assert decide(Modality=modality).admitted


@pytest.mark.parametrize("modality", ["MG", "IO", "RF", "OT", "CT", "PX"])
def test_another_modality_is_declined(modality: str) -> None:
    assert decide(Modality=modality).reason == DeclineReason.MODALITY


@pytest.mark.parametrize(
    ("modality", "admitted"), [("CR", True), ("DX", True), ("RG", False), (None, False), ("OT", False)]
)
def test_a_secondary_capture_has_to_say_that_it_is_a_radiograph(modality: str | None, *, admitted: bool) -> None:
    decision = decide(SOPClassUID=uid.SecondaryCaptureImageStorage, Modality=modality)
    assert decision.admitted is admitted


def test_colour_and_many_frames_are_declined() -> None:
    assert decide(SamplesPerPixel=3, PhotometricInterpretation="RGB").reason == DeclineReason.COLOUR
    assert decide(PhotometricInterpretation="PALETTE COLOR").reason == DeclineReason.COLOUR
    assert decide(NumberOfFrames="12").reason == DeclineReason.MULTI_FRAME
    assert decide(NumberOfFrames="1", SamplesPerPixel=None, PhotometricInterpretation=None).admitted


# Body part.


@pytest.mark.parametrize(
    "item",
    [
        code("816094009", "SCT", "Chest"),
        code("51185008", "SCT", "Chest"),
        code("T-D3000", "SRT", "Chest"),
        code("T-D3000", "SNM3", "Chest"),
        code("T-28000", "99SDM", "Lung"),
        code("416550000", "SCT", "Chest and Abdomen"),
        code("R-FAB56", "SRT", "Chest, Abdomen and Pelvis"),
    ],
)
def test_a_coded_chest_is_a_chest_in_every_edition_of_snomed(item: Dataset) -> None:
    decision = decide(AnatomicRegionSequence=[item], BodyPartExamined="HIP")
    assert (decision.body_part, decision.evidence[0]) == ("chest", "AnatomicRegionSequence")


@pytest.mark.parametrize(
    "item",
    [
        code("24136001", "SCT", "Hip joint"),
        code("T-15710", "SRT", "Hip joint"),
        code("T-D4000", "SNM3", "Abdomen"),
        code("122495006", "SCT", "Thoracic spine"),
        code("113197003", "SCT", "Rib"),
    ],
)
def test_another_coded_region_is_declined_whatever_body_part_examined_says(item: Dataset) -> None:
    decision = decide(AnatomicRegionSequence=[item], BodyPartExamined="CHEST")
    assert decision == Admission(DeclineReason.NOT_CHEST, "unknown", "not_chest", ("AnatomicRegionSequence",))


def test_every_common_region_is_known() -> None:
    """CID 4031: what holds the lungs, the four that we leave open, and the rest."""
    known: dict[str | None, set[str]] = {}
    for keyword in codes.cid4031.dir():
        concept = getattr(codes.cid4031, keyword)
        known.setdefault(anatomy.body_part_of_code(concept.value, "SCT"), set()).add(concept.meaning)
    assert known["chest"] == {
        "Chest", "Heart", "Mediastinum", "Chest and Abdomen", "Chest, Abdomen and Pelvis", "Neck and Chest",
        "Neck, Chest and Abdomen", "Neck, Chest, Abdomen and Pelvis",
    }  # fmt: skip
    assert known[None] == {"Entire body", "Apex of Lung", "Bronchus", "Trachea"}


@pytest.mark.parametrize(
    "text",
    [
        "CHEST",
        "chest ",
        "Thorax",
        "LUNG",
        "CHESTABDOMEN",
        "CHEST_PA",
        "PORT CHEST",
        "TORAX",
        "Röntgenthorax",
        "THORAX2",
    ],
)
def test_body_part_examined_is_read_with_tolerance(text: str) -> None:
    assert decide(BodyPartExamined=text).body_part == "chest"


@pytest.mark.parametrize(
    "text", ["HIP", "hip ", "LSPINE", "L SPINE", "SKULL", "EXTREMITY", "ABDOMEN", "TSPINE", "HIP JOINT", "RIB"]
)
def test_another_defined_term_is_declined(text: str) -> None:
    assert decide(BodyPartExamined=text).reason == DeclineReason.NOT_CHEST


@pytest.mark.parametrize("text", ["UNKNOWN", "DEFAULT", "WHOLEBODY", "", None, ["CHEST", "ABDOMEN"]])
def test_a_word_that_says_nothing_gives_way_to_the_next_evidence(text: Any) -> None:
    assert decide(BodyPartExamined=text).body_part == "unknown"
    decision = decide(BodyPartExamined=text, StudyDescription="KNIE links")
    assert (decision.reason, decision.evidence) == (DeclineReason.NOT_CHEST, ("StudyDescription",))


@pytest.mark.parametrize(
    "text",
    [
        "XR CHEST PORTABLE", "Chest PA/LAT", "CXR", "Röntgen Thorax p.a.", "Rö-Thoraxaufnahme", "RX TÓRAX PA",
        "Radiographie du thorax", "RX TORACE", "Poumon de face", "Lunge", "Pulmo", "RTG klatki piersiowej",
        "AKCİĞER GRAFİSİ", "Lungröntgen, lungor",
        "рентгенография органов грудной клетки", "胸部正面", "CHEST AND ABDOMEN", "RIBS + CHEST PA", "chest_abdomen",
    ],
)  # fmt: skip
def test_a_description_that_names_the_chest_is_a_chest(text: str) -> None:
    decision = silent(StudyDescription=text)
    assert (decision.body_part, decision.evidence) == ("chest", ("StudyDescription",))


@pytest.mark.parametrize(
    "text",
    [
        "HIP JOINT", "XR KNEE 2 VIEWS", "Hand links", "EXTREMITY", "Schädel", "C-SPINE", "LWS seitlich",
        "Thoracic Spine", "ABDOMEN SUPINE", "Becken", "Rachis lombaire", "RX RODILLA", "MAMMO",
        "Non-ossifying fibroma of distal tibia",
        "[LOWER LEG         ]",
    ],
)  # fmt: skip
def test_a_description_that_names_another_part_only_is_declined(text: str) -> None:
    assert silent(StudyDescription=text).reason == DeclineReason.NOT_CHEST


@pytest.mark.parametrize(
    "text",
    ["chip", "handling", "Routine", "Orchestra", "Emergency", "PA", "shipment", "legend", "full long", "12345", "???"],
)
def test_a_part_of_a_word_is_no_evidence(text: str) -> None:
    assert silent(StudyDescription=text).body_part == "unknown"


def test_the_series_goes_before_the_study() -> None:
    trauma = "CHEST AND PELVIS"
    assert silent(StudyDescription=trauma, SeriesDescription="Pelvis AP").reason == DeclineReason.NOT_CHEST
    decision = silent(StudyDescription="Pelvis", ProtocolName="Thorax")
    assert (decision.body_part, decision.evidence) == ("chest", ("ProtocolName",))


# View.


@pytest.mark.parametrize(
    ("item", "view", "reason"),
    [
        (code("272479007", "SCT"), "PA", None),
        (code("R-40888", "SRT"), "PA", None),
        (code("R-10214", "SRT"), "PA", None),
        (code("399348003", "SCT"), "AP", None),
        (code("R-10206", "SNM3"), "AP", None),
        (code("399033003", "SCT"), "frontal", None),
        (code("399067008", "SCT"), "lateral", DeclineReason.LATERAL),
        (code("R-10236", "SRT"), "lateral", DeclineReason.LATERAL),
        (code("399135007", "SCT"), "not_frontal", DeclineReason.NOT_FRONTAL),
        (code("R-40985", "SRT"), "not_frontal", DeclineReason.NOT_FRONTAL),
    ],
)
def test_a_coded_view_decides_before_view_position(item: Dataset, view: str, reason: DeclineReason | None) -> None:
    other = "PA" if reason else "LL"
    decision = decide(ViewCodeSequence=[item], ViewPosition=other)
    assert (decision.view, decision.reason, decision.evidence[-1]) == (view, reason, "ViewCodeSequence")


def test_every_view_of_cid_4010_is_known() -> None:
    views = {
        keyword: anatomy.view_of_code(getattr(codes.cid4010, keyword).value, "SCT") for keyword in codes.cid4010.dir()
    }
    assert None not in views.values()
    frontal = {keyword for keyword, view in views.items() if view in ("PA", "AP", "frontal")}
    assert frontal == {"PosteroAnterior", "AnteroPosterior", "Frontal"}
    assert all(
        view == "lateral" for keyword, view in views.items() if keyword in ("Lateral", "LeftLateral", "RightLateral")
    )


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "PA"), ("pa ", "PA"), ("P.A.", "PA"), ("CHEST PA", "PA"), ("POSTERO-ANTERIOR", "PA"), ("AP", "AP"),
        ("AP SUPINE", "AP"), ("ap_erect", "AP"), ("AP LORDOTIC", "AP"), ("FRONTAL", "frontal"), ("PA AP", "frontal"),
        ("TORAX AP DECUBITO", "AP"), ("DECUBITUS DORSAL AP", "AP"),
    ],
)  # fmt: skip
def test_a_frontal_view_position_is_admitted(text: str, view: str) -> None:
    decision = decide(ViewPosition=text)
    assert (decision.view, decision.admitted) == (view, True)


@pytest.mark.parametrize("text", ["LL", "RL", "ll ", "LATERAL", "LAT", "Left Lateral", "SEITLICH", "PROFIL"])
def test_a_lateral_view_position_is_declined(text: str) -> None:
    assert decide(ViewPosition=text) == Admission(
        DeclineReason.LATERAL, "lateral", "chest", ("BodyPartExamined", "ViewPosition")
    )


@pytest.mark.parametrize(
    "text", ["LLD", "RLD", "LLO", "RLO", "RAO", "LPO", "OBLIQUE", "LATERAL DECUBITUS", "DECUBITUS", "PA OBLIQUE"]
)
def test_an_oblique_or_decubitus_view_is_not_frontal(text: str) -> None:
    assert decide(ViewPosition=text).reason == DeclineReason.NOT_FRONTAL


@pytest.mark.parametrize("text", ["", None, "STANDING", "PA/LAT", ["PA", "LL"]])
def test_a_view_position_that_decides_nothing_gives_way_to_the_orientation(text: Any) -> None:
    decision = decide(ViewPosition=text, PatientOrientation=["P", "F"])
    assert (decision.reason, decision.evidence[-1]) == (DeclineReason.LATERAL, "PatientOrientation")


@pytest.mark.parametrize(
    ("orientation", "view"),
    [
        (["L", "F"], "frontal"), (["R", "F"], "frontal"), (["L", "H"], "frontal"), (["F", "L"], "frontal"),
        (["LA", "FP"], "frontal"), (["A", "F"], "lateral"), (["P", "F"], "lateral"), (["AL", "F"], "lateral"),
        (["L", "P"], "not_frontal"), (["L", "L"], "unknown"), (["L"], "unknown"), (["L", "F", "A"], "unknown"),
        (["", ""], "unknown"), (["X", "Y"], "unknown"), (["LE", "V"], "unknown"), ("", "unknown"),
    ],
)  # fmt: skip
def test_the_orientation_of_the_patient_tells_the_view(orientation: Any, view: str) -> None:
    assert decide(ViewPosition=None, PatientOrientation=orientation).view == view


@pytest.mark.parametrize("keyword", ["SeriesDescription", "ProtocolName", "PerformedProcedureStepDescription"])
@pytest.mark.parametrize("text", ["Chest LAT", "Thorax seitlich", "THORAX LL", "profil", "W082 Chest lateral"])
def test_a_series_that_names_only_a_lateral_view_is_declined(keyword: str, text: str) -> None:
    decision = silent(**{keyword: text})
    assert (decision.reason, decision.evidence[-1]) == (DeclineReason.LATERAL, keyword)


@pytest.mark.parametrize(
    "text", ["Chest PA and LAT", "PA/LAT", "bilateral infiltrates", "Thorax 2 Ebenen pa + seitlich"]
)
def test_a_series_that_names_both_views_or_none_is_admitted(text: str) -> None:
    assert silent(SeriesDescription=text).view == "unknown"


def test_the_description_of_a_whole_study_tells_no_view() -> None:
    assert silent(StudyDescription="CHEST LATERAL").admitted


def test_body_part_goes_before_view() -> None:
    assert decide(BodyPartExamined="HIP", ViewPosition="LL").reason == DeclineReason.NOT_CHEST


# Values that are none.


GARBAGE: list[dict[str, Any]] = [
    {"AnatomicRegionSequence": []},
    {"AnatomicRegionSequence": [Dataset()]},
    {"AnatomicRegionSequence": [code("", "SCT"), code("816094009", ""), code("816094009", "99LOCAL")]},
    {"ViewCodeSequence": [Dataset(), Dataset()]},
    {"ViewCodeSequence": []},
    {"ContributingEquipmentSequence": [Dataset()]},
    {"Manufacturer": ["a", "b"]},
    {"PatientOrientation": "L"},
    {"ViewPosition": ["", ""]},
    {"BodyPartExamined": ["CHEST", "HIP"]},
    {"NumberOfFrames": [2, 3]},
    {"SamplesPerPixel": [3, 3]},
    {"PhotometricInterpretation": ["RGB", "RGB"]},
    {"StudyDescription": ["knee", "hip"]},
    {"Modality": ["MG", "CT"]},
]


@pytest.mark.parametrize("elements", GARBAGE, ids=lambda elements: next(iter(elements)))
def test_an_illegal_value_counts_as_absent(elements: dict[str, Any]) -> None:
    assert silent(**elements) == Admission(None, "unknown", "unknown", ())


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("BodyPartExamined", "SQ", Sequence([Dataset()])),
        ("AnatomicRegionSequence", "CS", "CHEST"),
        ("ViewCodeSequence", "OB", b"\1\2\3\4"),
        ("PatientOrientation", "OB", b"\1\2\3\4"),
        ("NumberOfFrames", "LO", "many"),
        ("SamplesPerPixel", "FD", 3.0),
        ("Modality", "US", 7),
        ("SeriesDescription", "OW", b"lateral "),
    ],
)
def test_an_element_of_a_wrong_vr_counts_as_absent(keyword: str, vr: str, value: Any) -> None:
    header = chest_dataset(**SILENT)
    header.pop(keyword, None)
    header.add_new(keyword, vr, value)
    assert admit(header, SETTINGS) == Admission(None, "unknown", "unknown", ())


def test_a_file_of_mutated_bytes_is_decided_without_an_exception_or_a_warning() -> None:
    header = chest_dataset(
        AnatomicRegionSequence=[code("816094009", "SCT")],
        ViewCodeSequence=[code("272479007", "SCT")],
        NumberOfFrames="1",
    )
    del header.PixelData
    raw = io.BytesIO()
    header.save_as(raw, enforce_file_format=True)
    whole = raw.getvalue()
    headers = []
    for at in range(400, len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        with contextlib.suppress(Exception):  # what is no object at all is the listener's business
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read = pydicom.dcmread(io.BytesIO(damaged), force=True)
            headers.append(read)
    assert len(headers) > 500
    for read in headers:
        admit(read, SETTINGS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RG1_J2KI", Admission(None, "PA", "chest", ("BodyPartExamined", "ViewPosition"))),
        ("rsna_sc_cr_chest", Admission(None, "PA", "chest", ("BodyPartExamined", "ViewPosition"))),
        *[
            (name, Admission(DeclineReason.NOT_CHEST, "unknown", "not_chest", ("BodyPartExamined",)))
            for name in ("RG2_JPLL", "RG2_JLSL", "RG2_JPLY", "RG3_J2KI")
        ],
    ],
)
def test_of_the_real_objects_the_two_chests_are_admitted(name: str, expected: Admission, data_dir: Path) -> None:
    header = pydicom.dcmread(data_dir / "dicom" / f"{name}.dcm", stop_before_pixels=True)
    assert admit(header, SETTINGS) == expected
    # Without Body Part Examined the descriptions decide alike.
    del header.BodyPartExamined
    without = admit(header, SETTINGS)
    assert without.admitted == expected.admitted
