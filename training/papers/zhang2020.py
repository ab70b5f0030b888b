"""Zhang et al. 2020: COVID-19 Screening on Chest X-ray Images Using Deep Learning based Anomaly Detection."""

from __future__ import annotations

from dataclasses import dataclass, field

CITATION = "Zhang J, Xie Y, Li Y, Shen C, Xia Y. arXiv:2003.12338 (2020)"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is run: `python -m training train zhang --data DIR --workdir DIR`.

    Attributes
    ----------
    shares
        Part of an epoch's images drawn from each source and class. The class nearly equals the source, so both
        classes of `cohen` are drawn about as often: there, only the image tells them apart.
    zoom, rotation_deg, gamma, blur_px, noise
        Ranges of the random changes: factor, degrees, exponent of e, deviation in pixels, deviation in image units
        after standardisation.
    """

    seed: int = 20
    folds: int = 3
    resize: int = 220
    crop: int = 192
    epochs: int = 12
    images_per_epoch: int = 2112
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    zoom: tuple[float, float] = (0.9, 1.1)
    rotation_deg: float = 8.0
    gamma: float = 0.4
    blur_px: float = 1.2
    noise: float = 0.1
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "cohen/positive": 0.23,
            "hannover/positive": 0.10,
            "cohen/negative": 0.17,
            "nih/negative": 0.25,
            "kermany/negative": 0.25,
        }
    )


RECIPE = Recipe()

DIFFERENCES = (
    "Started from random weights: the paper's ImageNet weights were not at hand.",
    "192 pixels cropped from 220, the paper has 448 from 512: trained on two CPU cores.",
    (
        "AdamW with warm-up and cosine decay, 12 epochs of 2,112 images, batch 64: in that time the paper's SGD at "
        "1e-4, made for 500 epochs, would not move a network that starts from random weights."
    ),
    (
        "Further augmentation (rotation, gamma, blur, noise, erased patches and frames, jittered contrast) against "
        "shortcuts; the paper has crop, zoom and flip."
    ),
    "Sampling balanced by source and class; the paper does not say how it sampled.",
    (
        "Negatives are all frontal images without COVID-19, normal ones and children's among them; the paper has other "
        "pneumonia of ChestX-ray14 only."
    ),
    "Single evaluation crop from the centre; the paper does not name its test crop.",
)

# Table 1: sensitivity and specificity (%) at T, mean of two random splits by patient; AUC 95.18 %.
PAPER = {
    "auc": 0.9518,
    "images": {"covid19": 100, "other pneumonia": 1431},
    "at": {
        0.50: (72.00, 97.97),
        0.40: (77.00, 95.46),
        0.30: (81.00, 90.71),
        0.25: (90.00, 87.84),
        0.20: (93.00, 81.41),
        0.15: (96.00, 70.65),
    },
}
