"""The COVID-19 image data collection (github.com/ieee8023/covid-chestxray-dataset; Cohen et al., arXiv 2006.11988).

``metadata.csv``, and the files in the folders that its column ``folder`` names: ``images``, and ``volumes`` of CT.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.data.readers.common import Collected, Listed, age, collect, find, sex, table, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The column `finding` is a path since July 2020 (Pneumonia/Viral/COVID-19), was a word, and may hold several with
# commas (COVID-19, ARDS). Here the words of both forms; the finding that stands first here wins. What the owner files
# under Pneumonia is pneumonia, infectious or not. `No Finding` means healthy (his issue 173); `todo` and `Unknown`
# say nothing, and such X-rays are left out.
FINDINGS = {
    "covid19": ("COVID-19",),
    "pneumonia": (
        *("Pneumonia", "Viral", "SARS", "MERS", "MERS-CoV", "Influenza", "H1N1", "Varicella", "Herpes"),
        *("Swine-Origin Influenza A (H1N1) Viral Pneumonia", "Herpes pneumonia"),
        *("Bacterial", "Streptococcus", "Klebsiella", "Chlamydophila", "Legionella", "E.Coli", "Mycoplasma"),
        *("Nocardia", "Staphylococcus", "MRSA", "Mycoplasma Bacterial Pneumonia"),
        *("Fungal", "Pneumocystis", "Aspergillosis", "Invasive Aspergillosis", "Lipoid"),
        *("Aspiration", "Aspiration pneumonia", "Lobar Pneumonia", "Multilobar Pneumonia", "Round pneumonia"),
        *("Organizing Pneumonia", "Cryptogenic Organizing Pneumonia", "Unusual Interstitial Pneumonia"),
        *("Accelerated Phase Usual Interstitial Pneumonia", "Desquamative Interstitial Pneumonia"),
        *("Lymphocytic Interstitial Pneumonia", "Eosinophilic Pneumonia", "Chronic eosinophilic pneumonia"),
    ),
    "normal": ("No Finding",),
    "other_disease": ("ARDS", "Tuberculosis", "Spinal Tuberculosis", "Allergic bronchopulmonary aspergillosis"),
}
_SLICES = ("Axial", "Coronal", "Sagittal")


def read(root: Path) -> Collected:
    """X-rays by their finding; CT slices are ``not_cxr`` with the view ``CT``, CT volumes are left out."""
    file = find(root, "metadata.csv")
    return collect(file.parent, _listed(file))


def _listed(file: Path) -> Iterator[Listed]:
    for row in table(file, "patientid", "sex", "age", "finding", "view", "modality", "filename"):
        listed = {
            "file": f"{row.get('folder') or 'images'}/{row['filename']}",
            "source": "cohen",
            "patient": row["patientid"],
            "labels": row["finding"],
            "sex": sex(row["sex"]),
            "age": age(row["age"]),
            "licence": row.get("license", ""),
        }
        if row["filename"].endswith((".gz", ".nii")):
            yield Listed(**listed, finding="", why="a volume (NIfTI), no image")
        elif row["modality"] == "CT" or row["view"] in _SLICES:
            yield Listed(**listed, finding="not_cxr", view="CT")
        elif row["modality"] != "X-ray":
            yield Listed(**listed, finding="", why=f"the modality is {row['modality']!r}")
        else:
            yield Listed(**listed, finding=finding_of(row["finding"]), view=view(row["view"]))


def finding_of(label: str) -> str:
    """Our finding for the owner's label, or empty."""
    words = {word.strip().casefold() for word in re.split("[/,]", label)}
    return next((ours for ours, theirs in FINDINGS.items() if words & {word.casefold() for word in theirs}), "")
