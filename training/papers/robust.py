"""The profile ``robust`` of each paper: what docs/experiments.md found to hold where telling sources apart helps least.

It is trained by ``--protocol folds`` only, on all images at hand. The four classes, and sampling by source and class,
ask of a network "is it abnormal?" and "if so, is it COVID-19?" instead of "which collection is it from?".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.recipe import BY_SOURCE_AND_CLASS, Augmentation, Recipe

if TYPE_CHECKING:
    from training.data.manifest import Picture

PROFILE = "robust"
CLASSES = ("normal", "pneumonia", "other_disease", "covid19")
# The scores that answer "if it is abnormal, is it COVID-19?" and "is it abnormal?" of networks with these classes.
GIVEN = "p_covid19 / (p_covid19 + p_pneumonia)"
ABNORMAL = "-logit_normal"

AUGMENTATION = Augmentation(
    random_crop=True,
    flip=0.5,
    zoom=(0.85, 1.15),
    rotation_deg=10.0,
    shear_deg=5.0,
    gamma=0.3,
    contrast=(0.8, 1.2),
    blur_px=1.2,
    noise=0.1,
    erase=0.5,
)
# By EfficientNet-Lite, the last block of each stage from the third on: what its maps hold is texture more than form.
LEVELS = {"efficientnet_lite0": (5, 8, 11, 15), "efficientnet_lite2": (7, 11, 15, 20)}
EQUALISED = "equalised"
TRAINED: dict[str, Any] = {
    "profile": PROFILE,
    "classes": CLASSES,
    "given": GIVEN,
    "abnormal": ABNORMAL,
    "balance": BY_SOURCE_AND_CLASS,
    "images_per_epoch": 1500,
    "batch": 32,
    "accumulate": 1,
    "optimiser": "adamw",
    "optimiser_options": {"weight_decay": 0.05},
    "schedule": "cosine",
    "schedule_options": {"warmup_epochs": 1.0},
    "augmentation": AUGMENTATION,
}

# Of layers that are trained on the maps of a frozen backbone, made once.
FROZEN = TRAINED | {
    "augmentation": Augmentation(),
    "batch": 64,
    "epochs": 12,
    "learning_rate": 1e-3,
    "weights": "imagenet",
    "pretraining": None,
    "cache_features": True,
}
# All of the image, drawn to 128 pixels and back.
WHOLE: dict[str, Any] = {"resize": 224, "crop": 224, "resolution": 128, "standardise": "centred"}

_DATA = "No reproduction: trained on every frontal image of the manifest, by five folds."
_CLASSES = "Four classes, normal, pneumonia, other disease and COVID-19; the paper has others."
_SAMPLING = "Every epoch draws as many images of each class of each collection."
_TRAINING = (
    "AdamW with warm-up and cosine decay, batch 32, and further augmentation (crop, zoom, rotation, shear, gamma, "
    "contrast, blur, noise, erased patches and frames)."
)
_LUNGS = (
    "A linear layer on the frozen maps, fitted once on the outlined lungs of split train, gives each cell's "
    "probability to be lung."
)
_WHOLE = "The image is drawn to 128 pixels and back to 224; nothing is cut off."
_LOWERED = (
    "The image is drawn to 128 pixels and back, and the middle, 86 % of its side, is cut out: frames, letters and "
    "differences in sharpness fall away. 224 pixels."
)
_EQUALISED = "Histogram equalisation; the middle of the image, 83 % of its side, is cut out."
DIFFERENCES = {
    "zhang": (
        _DATA,
        _CLASSES,
        (
            "The anomaly head tells abnormal from normal, the classification head COVID-19 from other diseases among "
            "the abnormal; in the paper both tell COVID-19 from everything else."
        ),
        (
            "The trunk is a frozen EfficientNet-Lite0 (ImageNet), whose maps after its fifth and sixth stage are drawn "
            "to 7 x 7 cells and put side by side; it is not ResNet-18. The heads' convolutions have 128 channels."
        ),
        _LOWERED,
        (
            "AdamW at 1e-3 with warm-up and cosine decay, batch 64, 12 epochs of 1,500 images, some of them mirrored; "
            "the paper has SGD at 1e-4 and 500 epochs."
        ),
        _SAMPLING,
    ),
    "basu": (
        _DATA,
        (
            "The convolutions are those of a frozen EfficientNet-Lite0 (ImageNet), whose maps after its fifth and "
            "sixth stage are drawn to 7 x 7 cells and put side by side; AlexNet's dense layers read them drawn to "
            "6 x 6 cells, and have 256 neurons, not 4,096."
        ),
        f"{_LUNGS} What the dense layers see is multiplied by it.",
        (
            "One stage: normal, pneumonia and other disease of all collections are learnt together with COVID-19, not "
            "before it."
        ),
        _WHOLE,
        (
            "AdamW at 1e-3 with warm-up and cosine decay, batch 64, 12 epochs of 1,500 images, some of them mirrored; "
            "the paper has SGD at 1e-4 and further augmentation."
        ),
        _SAMPLING,
    ),
    "jahan": (
        _DATA,
        "Histogram equalisation; the middle of the image, 84 % of its side, is cut out.",
        "10 epochs of 1,500 images, as many of each collection; the paper has 70 of 11,041.",
        "The density of 16 principal components of the latent answers.",
    ),
    "zhong": (
        _DATA,
        _CLASSES,
        "The dense layers have 256 and 128 neurons, not 4,096 and 2,048.",
        _EQUALISED,
        f"{_TRAINING} 12 epochs of 1,500 images at 4e-4; the paper has Adam in steps.",
        f"{_SAMPLING} The paper has class weights.",
    ),
    "minaee": (
        _DATA,
        _CLASSES,
        (
            "EfficientNet-Lite0 and -Lite2, which the paper has not: their ImageNet weights come from the package "
            "index. Their last layer reads the mean and the deviation of each channel after four stages, not the mean "
            "of the last map; it is fitted by logistic regression, not by Adam."
        ),
        f"{_LUNGS} Mean and deviation are weighed by it.",
        "The heatmap's square is left out of what is read; in the paper it is grey in the image.",
        _WHOLE,
        "Images and their mirror images, each class of each collection with the same weight; no copies of COVID-19.",
    ),
}


def label(picture: Picture, classes: tuple[str, ...]) -> str | None:
    """The finding, where it is one of the classes; else the class ``anomalous`` or ``other``, where there is one."""
    if picture.finding in classes:
        return picture.finding
    return next((rest for rest in ("anomalous", "other") if rest in classes), None)


def zhang(paper: Recipe) -> Recipe:
    """Abnormality by the anomaly head, COVID-19 among the abnormal by the classification head."""
    heads = paper.options["heads"]
    trunk = "efficientnet_lite0"
    return paper.but(
        **FROZEN
        | {
            "given": "" if heads == "anomaly" else "p_cls",
            "abnormal": "" if heads == "classification" else "p_ano",
        },
        options=dict(paper.options) | {"channels": 128, "trunk": trunk, "levels": list(LEVELS[trunk][-2:])},
        loss="zhang_hierarchy",
        resize=260,
        crop=224,
        resolution=128,
        standardise="centred",
        trainable=("heads",),
    )


def basu(paper: Recipe) -> Recipe:
    """AlexNet's dense layers on the maps of a frozen ImageNet backbone, seen on the lungs only."""
    return paper.but(
        **FROZEN | WHOLE,
        options=dict(paper.options) | {"levels": list(LEVELS[paper.variant][-2:]), "dense": 256, "lungs": True},
        trainable=("backbone.classifier",),
    )


def zhong(paper: Recipe) -> Recipe:
    """The four classes, without class weights: sampling takes their place."""
    return paper.but(
        options={"classes": list(CLASSES), "dense": [256, 128]},
        loss_options={"smoothing": 0.12, "smoothing_form": "paper"},
        resize=96,
        crop=80,
        standardise=EQUALISED,
        epochs=12,
        learning_rate=4e-4,
        **TRAINED,
    )


def jahan(paper: Recipe) -> Recipe:
    """As many normal images of each collection, cropped and equalised; the density of 16 components answers."""
    return paper.but(
        profile=PROFILE,
        resize=152,
        crop=128,
        standardise=EQUALISED,
        epochs=10,
        images_per_epoch=1500,
        balance=BY_SOURCE_AND_CLASS,
        score="-log_density_pca",
    )


def minaee(paper: Recipe, backbone: str) -> Recipe:
    """A last layer that reads the lungs in several stages of a frozen ImageNet backbone."""
    options = {"backbone": backbone, "classes": list(CLASSES), "levels": list(LEVELS[backbone]), "lungs": True}
    return paper.but(
        **WHOLE,
        profile=PROFILE,
        options=dict(paper.options) | options,
        classes=CLASSES,
        given=GIVEN,
        abnormal=ABNORMAL,
        copies={},
        epochs=0,
        balance=BY_SOURCE_AND_CLASS,
        augmentation=Augmentation(),
        pretraining=None,
        cache_features=False,
        finish="last_layer",
        finish_options={"strength": 30.0},
    )
