"""What a random forest reaches that sees no lung: an AUC that a network does not beat is no sign of seeing disease."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from training.data.squares import pixels_of
from training.models.preprocess import square

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture

    # Pixels of a picture, float32 in [0, 1], shape (H, W).
    Reader = Callable[[Picture], NDArray[np.float32]]

TITLES = {
    "frame": "the 8-pixel frame of a 64 x 64 thumbnail",
    "form": "image size, aspect and file type",
    "thumbnail": "an 8 x 8 thumbnail",
}
_SIDE, _FRAME, _SMALL = 64, 8, 8
_TREES = 200
_MOST_SAMPLES = 1000  # for a tree of a large collection: grown on all, a forest of 1,800 features takes minutes
_SEED = 20


def features(picture: Picture, read: Reader = pixels_of) -> dict[str, NDArray[np.float64]]:
    """What each forest sees of a picture; the file's type is told by its suffix."""
    pixels = read(picture)
    thumbnail = square(pixels, _SIDE)[0].numpy()
    frame = np.ones((_SIDE, _SIDE), dtype=bool)
    frame[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    height, width = pixels.shape
    suffix = int.from_bytes(picture.path.suffix.lower().encode()[:5], "big")
    return {
        "frame": thumbnail[frame].astype(np.float64),
        "form": np.array([width, height, width / height, suffix], dtype=np.float64),
        "thumbnail": square(pixels, _SMALL)[0].numpy().ravel().astype(np.float64),
    }


def out_of_fold(
    table: NDArray[np.float64], positive: NDArray[np.bool_], folds: NDArray[np.str_], seed: int = _SEED
) -> NDArray[np.float64]:
    """The forest's probability of each image, by a forest grown on the other folds.

    Where the other folds hold one class only, it says 0.5: it knows nothing.

    Parameters
    ----------
    table
        Shape (N, features).
    positive, folds
        Shape (N,).
    """
    scores = np.full(len(positive), 0.5)
    for fold in np.unique(folds):
        here = folds == fold
        if positive[~here].any() and not positive[~here].all():
            forest = RandomForestClassifier(
                _TREES,
                class_weight="balanced_subsample",
                max_samples=min(int((~here).sum()), _MOST_SAMPLES),
                n_jobs=-1,
                random_state=seed,
            )
            forest.fit(table[~here], positive[~here])
            scores[here] = forest.predict_proba(table[here])[:, 1]
    return scores


class NoLungForests:
    """`training.evaluation.tasks.Forests` that reads each picture once and grows the same forests once."""

    def __init__(self, read: Reader = pixels_of) -> None:
        self._read = read
        self._features: dict[str, dict[str, NDArray[np.float64]]] = {}
        self._grown: dict[str, dict[str, tuple[str, NDArray[np.float64]]]] = {}

    def __call__(
        self, pictures: Sequence[Picture], positive: NDArray[np.bool_], folds: NDArray[np.str_]
    ) -> dict[str, tuple[str, NDArray[np.float64]]]:
        """Title and out-of-fold score of each image, by what the forest sees."""
        ids = [picture.image_id for picture in pictures]
        for picture in pictures:
            if picture.image_id not in self._features:
                self._features[picture.image_id] = features(picture, self._read)
        asked = hashlib.sha256(json.dumps([ids, positive.tolist(), folds.tolist()]).encode()).hexdigest()
        if asked not in self._grown:
            self._grown[asked] = {
                name: (title, out_of_fold(np.stack([self._features[i][name] for i in ids]), positive, folds))
                for name, title in TITLES.items()
            }
        return self._grown[asked]
