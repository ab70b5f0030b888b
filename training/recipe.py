"""What a training is made of: the frozen configuration that a paper's file fills in, once for each profile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BALANCES = NO_BALANCE, BY_CLASS, BY_SOURCE_AND_CLASS = "none", "class", "source and class"
KEPT_EPOCHS = KEEP_LAST, BEST_VALIDATION_ACCURACY = "last", "best validation accuracy"


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Ranges of the random changes of training images; each default changes nothing.

    Attributes
    ----------
    random_crop
        Cut the network's input at random from the resized square, not from its middle.
    flip
        Probability of a horizontal flip.
    zoom
        Range of the factor.
    rotation_deg, shear_deg, shift
        Largest angles in degrees; largest shift as a fraction of the side.
    brightness, contrast, gamma
        Largest change added (image units of 0 to 1); range of the factor about the image's mean; largest exponent
        of e in ``pixels ** exp(gamma)``. They apply before standardisation.
    jitter
        Largest relative change of contrast and absolute change of brightness after standardisation.
    blur_px, noise, erase
        Largest deviation of a Gaussian blur in pixels; largest deviation of noise, in image units after
        standardisation; probability that a rectangle, and that a frame, is set to zero.
    """

    random_crop: bool = False
    flip: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    rotation_deg: float = 0.0
    shear_deg: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    gamma: float = 0.0
    jitter: float = 0.0
    blur_px: float = 0.0
    noise: float = 0.0
    erase: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training, completely: the same recipe, images and seed give the same numbers.

    Attributes
    ----------
    architecture, options
        Name in `training.models.registry.NETWORKS` and its keyword arguments, as in a bundle's manifest.
    classes
        The classes in the order of the labels 0, 1, ... of the data set.
    resize, crop, standardise, resolution
        Of `training.models.preprocess.Preprocess`.
    loss, loss_options
        Name in `training.losses.LOSSES` and its keyword arguments.
    optimiser, optimiser_options
        ``adam``, ``adamw``, ``sgd``, ``nadam``, and keyword arguments of torch's class but the learning rate.
    epochs
        0 where nothing but `finish` trains.
    schedule, schedule_options
        Name in `training.schedules.SCHEDULES`, which gives the factor of `learning_rate`, and its keyword arguments.
    batch, accumulate
        Images in one forward pass; passes before an update. The paper's batch is their product.
    images_per_epoch
        Images drawn in an epoch; 0 is all of them, once.
    balance
        How `images_per_epoch` are drawn: ``none`` (each image equally often), ``class``, or ``source and class``
        (equal shares of each stratum).
    copies
        By class, how many augmented copies of an image an epoch holds; 1 where a class is not named.
    train_on
        Classes that the network is trained on; empty is all.
    trainable
        Prefixes of the names of the parameters that are trained; empty is all. A frozen BatchNorm keeps its statistics.
    weights
        Where the backbone starts: ``none`` (random), ``imagenet`` (torchvision's own loading), ``pretraining`` (the
        stage in `pretraining`), or a file that an earlier pretraining wrote.
    pretraining
        Basu's first stage: the recipe (classes ``normal`` and ``diseased``) that makes the backbone's weights.
    cache_features
        Draw each image's augmentation once and compute the frozen part once; needs `trainable` to be the last layer.
    keep
        ``last`` epoch, or ``best validation accuracy``.
    finish, finish_options
        Name in `training.finishing.FINISHING` of what is fitted after the last epoch, or empty; its keyword arguments.
    score
        The score of the network that answers "COVID-19?", larger is likelier.
    given
        The score that answers "if it is abnormal, is it COVID-19?"; empty where the network has none but `score`.
    abnormal
        The score that answers "is it abnormal?"; empty where it is that of pneumonia against normal, or there is none.
    """

    paper: str
    variant: str
    profile: str
    architecture: str
    classes: tuple[str, ...]
    loss: str
    score: str
    resize: int
    crop: int
    epochs: int
    learning_rate: float
    batch: int
    optimiser: str
    options: Mapping[str, Any] = field(default_factory=dict)
    standardise: str = "per image"
    resolution: int = 0
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    optimiser_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "constant"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    images_per_epoch: int = 0
    balance: str = NO_BALANCE
    copies: Mapping[str, int] = field(default_factory=dict)
    train_on: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()
    augmentation: Augmentation = Augmentation()
    weights: str = "none"
    pretraining: Recipe | None = None
    cache_features: bool = False
    keep: str = KEEP_LAST
    given: str = ""
    abnormal: str = ""
    finish: str = ""
    finish_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 20

    def __post_init__(self) -> None:
        """Refuse what would be kept in a record and not be done."""
        for name, known in (("balance", BALANCES), ("keep", KEPT_EPOCHS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not known; known: {', '.join(known)}")
        for name in ("epochs", "batch", "accumulate", "resize", "crop"):
            least = 0 if name == "epochs" and self.finish else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least} is needed")

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return replace(self, **changes)
