"""Every code that a report of ours writes, apart from those of the bundle's questions and the members' own outputs.

A site's settings may replace the codes of questions; nothing else of this table is settable.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)

from dicom_node.content import Code
from dicom_node.domain import Decision
from dicom_node.results import long_string


@dataclass(frozen=True, slots=True)
class Known(Code):
    """A code of this table; `used` says where it stands."""

    used: str = field(compare=False)


REPORT = Known("126000", "DCM", "Imaging Measurement Report", "TID 1500 row 1: title of the report")
LANGUAGE = Known("121049", "DCM", "Language of Content Item and Descendants", "TID 1204 row 1")
ENGLISH = Known("en-US", "RFC5646", "English (United States)", "TID 1204 row 1: value")
OBSERVER_TYPE = Known("121005", "DCM", "Observer Type", "TID 1002 row 1")
DEVICE = Known("121007", "DCM", "Device", "TID 1002 row 1: value")
DEVICE_UID = Known("121012", "DCM", "Device Observer UID", "TID 1004 row 1")
DEVICE_NAME = Known("121013", "DCM", "Device Observer Name", "TID 1004 row 2: AE title of the node")
DEVICE_MANUFACTURER = Known("121014", "DCM", "Device Observer Manufacturer", "TID 1004 row 3")
DEVICE_MODEL = Known("121015", "DCM", "Device Observer Model Name", "TID 1004 row 4")
PROCEDURE_REPORTED = Known("121058", "DCM", "Procedure reported", "TID 1500 row 4")
PLAIN_CHEST_XRAY = Known("399208008", "SCT", "Plain X-ray of chest", "TID 1500 row 4: value")
COMPUTER_AIDED_DIAGNOSIS = Known(
    "110003", "DCM", "Computer Aided Diagnosis", "Performed Procedure Code Sequence (0040,A372)"
)
ACQUISITION_EQUIPMENT = Known(
    "109101", "DCM", "Acquisition Equipment", "Contributing Equipment Sequence (0018,A001): what made the source"
)
PROCESSING_EQUIPMENT = Known(
    "109102",
    "DCM",
    "Processing Equipment",
    "Contributing Equipment Sequence (0018,A001): the node, the ensemble and each member",
)

IMAGE_LIBRARY = Known("111028", "DCM", "Image Library", "TID 1600 row 1")
IMAGE_LIBRARY_GROUP = Known("126200", "DCM", "Image Library Group", "TID 1600 row 2: the sources of one modality")
SOURCE = Known(
    "260753009", "SCT", "Source", "TID 1601 row 1, and of the coordinates of every number and region: a source image"
)
MODALITY = Known("121139", "DCM", "Modality", "TID 1602: the source's")
COMPUTED_RADIOGRAPHY = Known("CR", "DCM", "Computed Radiography", "TID 1602: Modality")
DIGITAL_RADIOGRAPHY = Known("DX", "DCM", "Digital Radiography", "TID 1602: Modality")
RADIOGRAPHIC_IMAGING = Known("RG", "DCM", "Radiographic imaging", "TID 1602: Modality")
OTHER_MODALITY = Known("OT", "DCM", "Other", "TID 1602: Modality of a secondary capture that names none")
ROWS = Known("110910", "DCM", "Pixel Data Rows", "TID 1602")
COLUMNS = Known("110911", "DCM", "Pixel Data Columns", "TID 1602")
PIXELS = Known("{pixels}", "UCUM", "Pixels", "TID 1602: unit of rows and columns")
ORIENTATION_ROW = Known("111044", "DCM", "Patient Orientation Row", "TID 1603")
ORIENTATION_COLUMN = Known("111043", "DCM", "Patient Orientation Column", "TID 1603")
HORIZONTAL_SPACING = Known("111026", "DCM", "Horizontal Pixel Spacing", "TID 1603")
VERTICAL_SPACING = Known("111066", "DCM", "Vertical Pixel Spacing", "TID 1603")
MILLIMETRE = Known("mm", "UCUM", "mm", "TID 1603: unit of spacings")

IMAGING_MEASUREMENTS = Known("126010", "DCM", "Imaging Measurements", "TID 1500 row 6")
MEASUREMENT_GROUP = Known("125007", "DCM", "Measurement Group", "TID 1501 row 1 and TID 1410 row 1")
TRACKING_IDENTIFIER = Known("112039", "DCM", "Tracking Identifier", "TID 1501 row 2 and TID 1410 row 2")
TRACKING_UID = Known("112040", "DCM", "Tracking Unique Identifier", "TID 1501 row 3 and TID 1410 row 3")
FINDING_SITE = Known("363698007", "SCT", "Finding Site", "TID 1501 row 6: of a question")
CHEST = Known("816094009", "SCT", "Chest", "TID 1501 row 6: value")
ALGORITHM_NAME = Known("111001", "DCM", "Algorithm Name", "TID 4019 row 1: the ensemble, or the member")
ALGORITHM_VERSION = Known("111003", "DCM", "Algorithm Version", "TID 4019 row 2")
ALGORITHM_MANUFACTURER = Known("122405", "DCM", "Algorithm Manufacturer", "TID 4019 row 2b")
ALGORITHM_PARAMETERS = Known("111002", "DCM", "Algorithm Parameters", "TID 4019 row 3")
PROBABILITY = Known("122157", "DCM", "Probability", "TID 300 row 1: of a question, and of a member whose output is one")
THRESHOLD = Known("122411", "DCM", "Threshold Value", "TID 300 row 1: what a question's probability is held against")
NO_UNITS = Known("1", "UCUM", "no units", "TID 300 row 1: unit of every number of a question and of a member")
POSITIVE = Known("10828004", "SCT", "Positive", "TID 1501 row 11: answer to a question that is flagged")
NEGATIVE = Known("260385009", "SCT", "Negative", "TID 1501 row 11: answer to a question that is not flagged")
UNDETERMINED = Known("373068000", "SCT", "Undetermined", "TID 1501 row 11: answer where the members disagree too far")
NORMALITY = Known("121402", "DCM", "Normality", "TID 1501 row 11: beside a question that asks for any abnormality")
NORMAL = Known("17621005", "SCT", "Normal", "TID 1501 row 11: Normality")
ABNORMAL = Known("263654008", "SCT", "Abnormal", "TID 1501 row 11: Normality")
NORMALITY_UNDETERMINED = Known(
    "371934000", "SCT", "Normality Undetermined", "TID 1501 row 11: Normality where the members disagree too far"
)
VISUAL_EXPLANATION = Known(
    "130401", "DCM", "Visual explanation", "TID 1501 row 9d: the heatmap; and its Derivation Code Sequence (0008,9215)"
)
COMMENT = Known("121106", "DCM", "Comment", "TID 1501 row 12: what is said to the reader")
FINDING = Known("121071", "DCM", "Finding", "TID 1410: of a region; never of a question, which it would assert")
SELECTED_REGION = Known("111099", "DCM", "Selected region", "TID 1410: Finding")
GEOMETRIC_PURPOSE = Known("130400", "DCM", "Geometric purpose of region", "TID 1410 row 3c")
BOUNDED_BY = Known("75958009", "SCT", "Bounded by", "TID 1410 row 3c: value")
IMAGE_REGION = Known("111030", "DCM", "Image Region", "TID 1410 row 5: the region, in pixels of the source")

# What is no probability has no code in DICOM, and a private scheme is honest where a borrowed code would mislead.
PRIVATE_SCHEME = "99CXRSCREEN"
PRIVATE_SCHEME_NAME = "Outputs of chest X-ray networks"
ANOMALY_SCORE = Known(
    "p_ano", PRIVATE_SCHEME, "Anomaly score, not confined to 0..1", "TID 300 row 1: output of a member"
)
MEAN_SCORE = Known(
    "p_avg", PRIVATE_SCHEME, "Mean of probability and scaled anomaly score", "TID 300 row 1: output of a member"
)

KNOWN: dict[str, Known] = {name: code for name, code in list(globals().items()) if isinstance(code, Known)}

ANSWERS = {Decision.FLAGGED: POSITIVE, Decision.NOT_FLAGGED: NEGATIVE, Decision.INDETERMINATE: UNDETERMINED}
NORMALITIES = {
    Decision.FLAGGED: ABNORMAL,
    Decision.NOT_FLAGGED: NORMAL,
    Decision.INDETERMINATE: NORMALITY_UNDETERMINED,  # CID 222 has one of its own
}
# By Modality (0008,0060), and by SOP class where that is empty (CID 29).
MODALITIES = {"CR": COMPUTED_RADIOGRAPHY, "DX": DIGITAL_RADIOGRAPHY, "RG": RADIOGRAPHIC_IMAGING}
MODALITIES_BY_SOP_CLASS = {
    ComputedRadiographyImageStorage: COMPUTED_RADIOGRAPHY,
    DigitalXRayImageStorageForPresentation: DIGITAL_RADIOGRAPHY,
    DigitalXRayImageStorageForProcessing: DIGITAL_RADIOGRAPHY,
}
# By the ledger's names of the members' outputs.
OUTPUTS = {"p_cls": PROBABILITY, "p_ano": ANOMALY_SCORE, "p_avg": MEAN_SCORE}


def output_code(name: str) -> Code:
    """The concept name under which a member's output stands in the report."""
    if name in OUTPUTS:
        return OUTPUTS[name]
    value = long_string(name)
    if len(value) > 16 or value != name:  # SH; a longer one would be a Long Code Value, which old readers miss
        value = f"{value[:7].strip()}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Code(value, PRIVATE_SCHEME, long_string(f"Output {name}"))
