"""What a bundle says of itself: the manifest beside the weights, read without torch."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from dicom_node.domain import BundleError

MANIFEST = "manifest.json"

Option = bool | int | float | str | tuple[str, ...]


class _Part(BaseModel):
    """Part of a manifest; what it leaves out is left out again where it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The ledger compares manifests as text: one that an older node wrote there must come out as it went in."""
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class Code(_Part):
    """A coded concept (PS3.3 8.8)."""

    value: str
    scheme: str
    meaning: str


class OperatingPoint(_Part):
    """A threshold on the calibrated probability, with what it gave on the held-back folds."""

    threshold: float = Field(ge=0, le=1)
    sensitivity: float = Field(ge=0, le=1)
    specificity: float = Field(ge=0, le=1)


class Distribution(_Part):
    """How the bundle's probability is spread over images of one class, each scored by networks that never saw it.

    Attributes
    ----------
    quantiles
        Probability by percentage of the images at or below it.
    histogram
        Images in each of as many bins of equal width between 0 and 1.
    """

    images: int = Field(ge=1)
    quantiles: dict[str, float]
    histogram: tuple[int, ...] = Field(min_length=1)


class Target(_Part):
    """One question that the bundle answers.

    Attributes
    ----------
    weights
        Of the members in the mean of calibrated logits that makes the probability.
    reference
        By class, ``positive`` and ``negative``, the probabilities that the operating points were chosen on.
    """

    name: str
    title: str
    code: Code
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    operating_point: str
    operating_points: dict[str, OperatingPoint]
    reference: dict[str, Distribution] = Field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """The threshold of the operating point in force."""
        return self.operating_points[self.operating_point].threshold


class WeightFile(_Part):
    """One safetensors file of a member."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Calibration(_Part):
    """Platt scaling of one output of a member: ``probability = sigmoid(slope * output + intercept)``."""

    output: str
    slope: float = Field(allow_inf_nan=False)
    intercept: float = Field(allow_inf_nan=False)


class Member(_Part):
    """One trained network: `architecture` and `options` are its name and arguments in `training.models.registry`."""

    name: str
    title: str
    version: str
    architecture: str
    options: dict[str, Option] = Field(default_factory=dict)
    citation: str
    weights: tuple[WeightFile, ...] = Field(min_length=1)
    preprocessing: dict[str, float | int | str]
    calibration: dict[str, Calibration]

    @property
    def weights_sha256(self) -> str:
        """One digest over the digests of all weight files, in order."""
        return hashlib.sha256("".join(part.sha256 for part in self.weights).encode()).hexdigest()


class Manifest(_Part):
    """A release of a bundle. `training` is the record of how it came about."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    release: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    title: str
    targets: tuple[Target, ...] = Field(min_length=1)
    members: tuple[Member, ...] = Field(min_length=1)
    training: dict[str, Any]

    def model_post_init(self, context: Any) -> None:
        """Refuse a manifest whose parts do not fit together."""
        members = {member.name: member for member in self.members}
        for target in self.targets:
            if not sum(target.weights.values()) > 0:
                raise ValueError(f"target {target.name}: the weights of its members have no positive sum")
            if target.operating_point not in target.operating_points:
                raise ValueError(f"target {target.name}: operating point {target.operating_point} is not defined")
            for name in target.weights:
                if name not in members or target.name not in members[name].calibration:
                    raise ValueError(f"target {target.name}: no calibrated member {name}")


def shipped_folders() -> tuple[Path, ...]:
    """The folders of bundles that travel with the workers; none where the workers are not installed."""
    spec = importlib.util.find_spec("workers")  # located, not imported: this process holds no torch
    return tuple(Path(root) / "bundles" for root in (spec.submodule_search_locations or [])) if spec else ()


def find_bundle(bundle: str, *folders: Path) -> Path:
    """Folder of a bundle, given by folder, or by the folder's name in one of `folders` or among the shipped ones.

    Raises
    ------
    BundleError
        Where none of them exists.
    """
    for folder in (Path(bundle), *(root / bundle for root in (*folders, *shipped_folders()))):
        if holds_manifest(folder):
            return folder
    raise BundleError(
        f"bundle {bundle!r}: no such name is installed and {Path(bundle) / MANIFEST} does not exist; "
        "`dicom-node bundle list` shows what is"
    )


def holds_manifest(folder: Path) -> bool:
    """Whether a bundle is meant to be there; one whose folder may not be looked into is, and reading it says why."""
    try:
        return (folder / MANIFEST).is_file()
    except PermissionError:
        return True
    except OSError:  # a name that is too long
        return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`; the weights are not looked at.

    Raises
    ------
    BundleError
        Naming the first thing that is wrong.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{folder / MANIFEST}: {where}: {first['msg']}") from error
