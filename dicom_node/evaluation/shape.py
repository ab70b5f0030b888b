"""The form of `evaluation.json`: plain JSON without NaN; what does not apply is None, an empty list or left out.

Fractions are fractions, not percent. A curve has at most 200 points. `NotRequired` keys are absent where they do not
apply; every other key is always there.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class OfRuns(TypedDict):
    """A figure computed run by run (fold by fold): `deviation` is the sample's (n - 1), None of fewer than two runs."""

    values: list[float]
    mean: float
    deviation: float | None


class Figure(TypedDict):
    """A number with its 95 % interval.

    `interval` names how `low` and `high` came to be ("Clopper-Pearson", "bootstrap over patients", or "none" where
    they are None); `n` is how many images (of a proportion: its denominator).
    """

    value: float
    low: float | None
    high: float | None
    n: int
    interval: str
    hits: NotRequired[int]  # of a proportion
    wilson: NotRequired[list[float]]  # of a proportion: low, high
    normal: NotRequired[float]  # of a proportion: half width by Minaee's eq. 3, value +- normal
    of_runs: NotRequired[OfRuns | None]  # of published numbers, and of a task's AUC (fold by fold)


class Curve(TypedDict):
    """Points in order. ROC: x false positive rate, y sensitivity. Precision-recall: x recall, y precision.

    Decision curve: x threshold probability, y net benefit. Reliability: x mean probability, y share of positives.
    """

    x: list[float]
    y: list[float]


class Band(TypedDict):
    """Of a curve, at each of `x` the 95 % interval of its y."""

    x: list[float]
    low: list[float]
    high: list[float]


class Histogram(TypedDict):
    """`counts` by class (or by finding), each one shorter than `edges`."""

    edges: list[float]
    counts: dict[str, list[int]]


class AtPrevalence(TypedDict):
    """Predictive values were the prevalence another; None where nothing is predicted so."""

    prevalence: float
    ppv: float | None
    npv: float | None


class AtThreshold(TypedDict):
    """What a threshold gives: `flagged` is score >= threshold.

    `thresholds` has one entry, or one for each fold where the threshold applied to a fold comes from the others.
    """

    thresholds: list[float]
    chosen: str  # how and on what, as a sentence
    sensitivity: Figure | None
    specificity: Figure | None
    specificity_when_chosen: NotRequired[Figure | None]  # of `external`: on the out-of-fold images it was chosen on
    predictive_values: list[AtPrevalence]  # at 1, 5, 10, 30 %; empty where sensitivity or specificity is missing


class Calibration(TypedDict):
    """Of a probability. `slope` and `intercept` of the logistic recalibration are 1 and 0 at best."""

    images: int
    brier: float
    ece: float
    slope: float | None
    intercept: float | None
    reliability: Curve
    decision: Curve  # net benefit of the model
    decision_all: Curve  # net benefit of calling all positive; of calling none it is 0


class Brief(TypedDict):
    """Images, of which `positives` are positive, and the figures that a small group bears."""

    images: int
    patients: int
    positives: int
    auc: Figure | None
    at: dict[str, AtThreshold]  # "youden", "sensitivity 0.95"; of a group: the same thresholds as its task's


class Group(Brief):
    """Everything about one score on one set of images with two classes."""

    average_precision: Figure | None
    roc: Curve | None
    precision_recall: Curve | None
    histogram: Histogram  # by "positive" and "negative" in tasks, by the class' name in `Tested`


class Baseline(TypedDict):
    """A random forest that sees no lung, out of fold, on the same images, folds and labels as the network."""

    title: str  # what the forest sees
    auc: Figure
    difference: Figure  # the network's AUC minus the forest's, paired bootstrap over patients
    roc: Curve | None  # the forest's, drawn beside the network's on the page


class Task(TypedDict):
    """A question asked of the out-of-fold scores (or of the run `final`: `external`, `val`)."""

    title: str
    positive: str
    negative: str
    score: str  # the score's name
    figures: Group
    calibration: Calibration | None  # of the nested calibrated probability
    baselines: dict[str, Baseline]  # "frame", "form", "thumbnail"; empty where there is one class only
    subgroups: dict[str, dict[str, Brief]]  # "view", "sex", "age" -> the value -> figures
    sources: list[str]


class Classes(TypedDict):
    """Argmax over the classes of a softmax network."""

    names: list[str]
    confusion: list[list[int]]  # rows: the true class; columns: the predicted one; in the order of `names`
    accuracy: Figure
    macro: dict[str, Figure]  # "precision", "recall", "f1"
    per_class: dict[str, dict[str, Figure | None]]  # class -> "precision", "recall", "f1"


class Tested(TypedDict):
    """Test rows of all runs of an experiment (`folds`: of the five folds), pooled, by the experiment's labels."""

    score: str
    positive: str  # the class of the label that `figures` ask for
    figures: Group  # thresholds of `at` are chosen on these very rows, as in the papers
    one_against_rest: dict[str, Group]  # by class, for softmax networks: the score p_<class>
    classes: Classes | None  # None where the network has no probability for each class
    sources: dict[str, Group]  # the same figures by source
    of_runs: dict[str, OfRuns]  # "auc", "average precision", "accuracy", ...: run by run
    runs: list[str]


class Compared(TypedDict):
    """One published number and ours."""

    row: str
    column: str
    paper: float
    deviation: float | None  # what the paper gives after its plus-minus
    deviation_is: str
    remark: str
    measure: dict[str, Any] | None  # plain `Measure`
    variant: str  # the variant that the number is of; empty: the paper's first
    ours: Figure | None
    why: str  # why `ours` is None; else empty


class ComparedTable(TypedDict):
    """A table of the paper, in the paper's order."""

    name: str
    caption: str
    numbers: list[Compared]


class Lungs(TypedDict):
    """What becomes of the scores of tested images when lungs are blanked, and where the heatmaps look.

    Where masks are not at hand only `absent` is filled (else it is empty).
    """

    absent: str
    images: NotRequired[dict[str, int]]  # by class: COVID-19, other pneumonia
    outlines: NotRequired[dict[str, int]]  # "mask", "boxes": where the lungs' outline comes from
    auc: NotRequired[dict[str, Figure | None]]  # "as it is", "lungs blanked", "lung boxes blanked", "lungs only"
    fall: NotRequired[dict[str, Figure | None]]  # AUC as it is minus AUC of each of the other three, paired
    mean_score: NotRequired[dict[str, Figure]]  # the same four: mean score of the COVID-19 images
    heatmap_images: NotRequired[int]
    energy: NotRequired[dict[str, Energy]]  # by the heatmap's name
    randomisation: NotRequired[dict[str, list[Randomised]]]  # by the heatmap's name, from the last layer down


class Energy(TypedDict):
    """Share of a heatmap's sum inside the lungs, mean over the images."""

    inside: Figure | None  # None where every map is empty
    area: Figure  # share of the input's area that is lung: what a map without preference would give
    more_than_area: Figure | None  # inside minus area, paired
    empty: int  # images whose map is zero everywhere; left out of `inside`


class Randomised(TypedDict):
    """How similar heatmaps stay when the last `layers` of `of` layers get random weights (one that vanishes counts 0).

    Layers of the same depth in parallel heads count as one.
    """

    layers: int
    of: int
    images: int  # compared
    spearman: Figure | None  # None where every map is left out
    kendall: Figure | None
    empty: int  # maps that became the same everywhere
    left_out: NotRequired[int]  # images whose map was the same everywhere before any weight was random


class Anomaly(TypedDict):
    """Of a network that was trained on one class: its anomaly scores by finding, and each one's AUC.

    `scores` by score name, then by "source/finding", then "all/finding".
    """

    scores: dict[str, dict[str, Quantiles]]
    auc: dict[str, dict[str, Figure | None]]  # score name -> "finding against normal" (turned: larger = anomalous)
    histograms: dict[str, Histogram]  # by score name


class Quantiles(TypedDict):
    """Of one score over some images."""

    images: int
    mean: Figure
    deviation: float | None
    quantiles: dict[str, float]  # "0.05", "0.25", "0.5", "0.75", "0.95"


class Experiment(TypedDict):
    """All about one experiment; `record` is its record.json as it stands."""

    record: dict[str, Any]
    title: str  # "zhang both, folds, small profile"
    test: Tested | None  # None for the rare experiment whose test rows hold one class only
    published: list[ComparedTable]  # protocol `paper` only
    tasks: dict[str, Task]  # see `Evaluation`
    lungs: Lungs | None  # None where the network is not asked for COVID-19
    anomaly: Anomaly | None


class Combination(TypedDict):
    """The given `folds` experiments as one: `training.evaluation.tasks.combined`, within one source `together`."""

    members: list[str]
    images: int
    tasks: dict[str, Task]


class Evaluation(TypedDict):
    """The whole file. `experiments` by "paper/variant/folder", as they lie in the working folder.

    Keys of `tasks`, in this order, where they apply:

    - "covid19 against pneumonia, SOURCE", "covid19 against pneumonia, SOURCE, PA": the honest one; SOURCE is cohen, and
      any other source that holds enough of both
    - "covid19 against the rest, SOURCE" for every source (one class only: no AUC, no baselines), then "..., adults"
      (without the collections of children) and "..., pooled"
    - "val, SOURCE", "val, adults", "val, pooled": run `final` on split val, thresholds frozen
    - "external": run `final`, sensitivity at the frozen thresholds (COVID-19 images only)
    - "covid19 against the rest, own test": of protocol `paper` this alone: its own test images
    - "pneumonia against normal, SOURCE": nih, kermany, and any other source that holds enough of both
    - of a bundle: the same after "by the answer to pneumonia: "; either after "val, ": what is shipped, on split val
    """

    experiments: dict[str, Experiment]
    combination: Combination | None
    method: dict[str, str]  # what is said once: "auc" -> "95 % percentile interval, 2000 bootstrap draws of patients"
    manifest: dict[str, Any]  # {"sha256", "images", "patients"} of the manifest that was evaluated on
