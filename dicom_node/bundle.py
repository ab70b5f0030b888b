"""What a bundle says of itself: the manifest beside the weights, read without torch."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from dicom_node.domain import BundleError

MANIFEST = "manifest.json"
REST = "rest"
SUM = " + "

Option = bool | int | float | str | tuple[int, ...] | tuple[str, ...]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Share, Share]
_NO_CONTROL = r"^[^\x00-\x20\x7f-\x9f\\][^\x00-\x1f\x7f-\x9f\\]*$"
ShortString = Annotated[str, Field(max_length=16, pattern=_NO_CONTROL)]  # PS3.5 6.2: SH
LongString = Annotated[str, Field(max_length=64, pattern=_NO_CONTROL)]  # LO


class _Part(BaseModel):
    """Part of a manifest; what it leaves out is left out again where it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The ledger compares manifests as text: one that an older node wrote there must come out as it went in."""
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class Code(_Part):
    """A coded concept (PS3.3 8.8); a longer value would be a Long Code Value, which old readers miss."""

    value: ShortString
    scheme: ShortString
    meaning: LongString


class OperatingPoint(_Part):
    """A threshold on the probability, with what it gave on the held-back folds and 95 % intervals.

    Attributes
    ----------
    undecided
        The share of these images that the bound of disagreement leaves undecided at this threshold.
    flagged_sensitivity
        The share of the positives that are flagged, those left undecided counted as not.
    """

    threshold: Share
    sensitivity: Share
    specificity: Share
    sensitivity_interval: Interval | None = None
    specificity_interval: Interval | None = None
    undecided: Share | None = None
    flagged_sensitivity: Share | None = None


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


class Scaling(_Part):
    """A straight line: ``logit = slope * value + intercept``."""

    slope: Number
    intercept: Number


class Condition(_Part):
    """Another question that must be answered with yes for this one to be.

    This question's probability is halved where that one's stands at `threshold`, and less and less touched above.
    """

    target: str
    threshold: float = Field(gt=0, lt=1)


class Disagreement(_Part):
    """How far members may lie apart before nothing is decided.

    Attributes
    ----------
    bound
        Of the spread of the members' logits over the distance of the combined logit from the threshold's.
    share, error, error_beyond
        Measured on the held-back folds: images beyond the bound, wrong decisions within it, and those that would have
        been wrong beyond it.
    """

    bound: float = Field(gt=0, allow_inf_nan=False)
    share: Share
    error: Share
    error_beyond: Share


class Target(_Part):
    """One question that the bundle answers; `dicom_node.combination` does the sums.

    Attributes
    ----------
    combination
        ``mean``: the weighted mean of the members' calibrated logits. ``stacking``: their weighted sum and the
        intercept. ``voting``: the weighted share of members whose logit is at least 0.
    scaling
        Of the combined logit, after `condition`.
    reference
        By class, ``positive`` and ``negative``, the probabilities that the operating points were chosen on.
    """

    name: str
    title: str
    code: Code
    combination: Literal["mean", "stacking", "voting"] = "mean"
    weights: dict[str, Number]
    intercept: Number = 0.0
    condition: Condition | None = None
    scaling: Scaling | None = None
    operating_point: str
    operating_points: dict[str, OperatingPoint]
    disagreement: Disagreement | None = None
    reference: dict[str, Distribution] = Field(default_factory=dict)

    def check(self) -> None:
        """Refuse weights that make no combination, and an operating point that is not defined."""
        if self.combination != "stacking":
            if min(self.weights.values(), default=0) < 0:
                raise ValueError(f"target {self.name}: a weight is below 0, which only stacking allows")
            if not sum(self.weights.values()) > 0:
                raise ValueError(f"target {self.name}: the weights of its members have no positive sum")
        elif not self.weights:
            raise ValueError(f"target {self.name}: no members")
        if self.operating_point not in self.operating_points:
            raise ValueError(f"target {self.name}: operating point {self.operating_point} is not defined")

    @property
    def threshold(self) -> float:
        """The threshold of the operating point in force."""
        return self.operating_points[self.operating_point].threshold


class WeightFile(_Part):
    """One safetensors file of a member."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Calibration(Scaling):
    """Platt scaling of what a member puts out: the logit of a question.

    Attributes
    ----------
    output
        The name of an output, or several with `SUM` between them: their sum.
    over
        Where given, it is the logarithm of `output` over this that is scaled; ``rest`` is 1 less `output`.
    """

    output: str
    over: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that it reads."""
        over = self.over.split(SUM) if self.over not in ("", REST) else []
        return (*self.output.split(SUM), *over)


class Limits(_Part):
    """What a member calls anomalous by one of its outputs: above the one, or below the other."""

    above: Number | None = None
    below: Number | None = None

    def passed(self, value: float) -> bool:
        """Whether the value lies outside."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)


class Member(_Part):
    """One trained network: `architecture` and `options` are its name and arguments in `training.models.registry`.

    Attributes
    ----------
    required
        Whether there is no answer without it.
    maps
        Names of the heatmaps that are kept; none given: all.
    anomalous
        By output, of a network that was taught normal images alone: what its paper calls an anomaly.
    """

    name: str
    title: str
    version: str
    architecture: str
    options: dict[str, Option] = Field(default_factory=dict)
    citation: str
    weights: tuple[WeightFile, ...] = Field(min_length=1)
    preprocessing: dict[str, float | int | str]
    calibration: dict[str, Calibration]
    required: bool = True
    maps: tuple[str, ...] | None = None
    anomalous: dict[str, Limits] = Field(default_factory=dict)

    @property
    def weights_sha256(self) -> str:
        """One digest over the digests of all weight files, in order."""
        return hashlib.sha256("".join(part.sha256 for part in self.weights).encode()).hexdigest()


class Gate(_Part):
    """What tells frontal chest X-rays from everything else, by the maps of one member's trunk.

    Attributes
    ----------
    reads
        The member whose trunk and preprocessing it shares.
    kinds
        What its outputs tell, in order; those that begin with ``frontal`` are admitted, or mended.
    threshold, distance
        Declined where all frontal kinds together have less than this probability, or where the features lie further
        than this from those of frontal chest X-rays.
    measured
        By kind, how many images were shown that it had not been fitted on, and how many were declined.
    """

    reads: str
    weights: WeightFile
    kinds: tuple[str, ...] = Field(min_length=2)
    threshold: Share
    distance: float = Field(gt=0, allow_inf_nan=False)
    measured: dict[str, tuple[int, int]] = Field(default_factory=dict)


class Golden(_Part):
    """Images with the scores that they must give on any device, to `tolerance` (of 1, or of a score above 1)."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+\.json$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tolerance: float = Field(gt=0, lt=1)
    half_tolerance: float = Field(gt=0, lt=1)


class Manifest(_Part):
    """A release of a bundle. `training` is the record of how it came about."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    release: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    title: str
    targets: tuple[Target, ...] = Field(min_length=1)
    members: tuple[Member, ...] = Field(min_length=1)
    gate: Gate | None = None
    golden: Golden | None = None
    training: dict[str, Any]

    def model_post_init(self, context: Any) -> None:
        """Refuse a manifest whose parts do not fit together."""
        members = {member.name: member for member in self.members}
        unconditional = {target.name for target in self.targets if target.condition is None}
        for target in self.targets:
            target.check()
            for name in target.weights:
                if name not in members or target.name not in members[name].calibration:
                    raise ValueError(f"target {target.name}: no calibrated member {name}")
                if target.combination == "stacking" and not members[name].required:
                    raise ValueError(f"target {target.name}: stacking needs {name}, which is not required")
            if target.condition is not None and target.condition.target not in unconditional:
                raise ValueError(
                    f"target {target.name} cannot depend on {target.condition.target}: no such target, or it depends "
                    "on another itself"
                )
        if self.gate is not None and self.gate.reads not in members:
            raise ValueError(f"the gate reads {self.gate.reads}, which is no member")


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


@lru_cache(maxsize=8)
def parse_manifest(text: str) -> Manifest:
    """The manifest as the ledger keeps it."""
    return Manifest.model_validate_json(text)
