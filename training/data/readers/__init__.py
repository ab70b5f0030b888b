"""Readers that make our manifest from collections as their owners ship them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.readers import (
    chexpert,
    chung,
    cohen,
    covid_xray_5k,
    covidx,
    dicom,
    folders,
    hannover,
    index,
    kermany,
    nih,
)
from training.data.readers.common import Collected

if TYPE_CHECKING:
    from training.data.readers.common import Reader

__all__ = ["READERS", "Collected"]

READERS: dict[str, Reader] = {
    "cohen": cohen.read,
    "nih": nih.read,
    "chexpert": chexpert.read,
    "covidx": covidx.read,
    "kermany": kermany.read,
    "figure1": chung.read_figure1,
    "actualmed": chung.read_actualmed,
    "covid-xray-5k": covid_xray_5k.read,
    "hannover": hannover.read,
    "folders": folders.read,
    "dicom": dicom.read,
    "index": index.read,
}
