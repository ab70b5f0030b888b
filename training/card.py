"""The model card: what a bundle is, what it was trained on, what it measured, what it is not for."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

from training.models.calibration import sigmoid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from training.datasets import Picture

# AUC of a random forest on the outer 8 pixels of a 64 x 64 thumbnail, COVID-19 against other pneumonia of cohen.
_FOREST_AUC = 0.643

_SOURCES = {
    "cohen": "COVID-19 image data collection (arXiv:2006.11988): adults mostly, many hospitals, figures of papers",
    "hannover": "COVID-19 image repository, Hannover Medical School: one hospital, mostly bedside AP",
    "kermany": "Kermany et al., Mendeley Data v2: children, Guangzhou, a 224-pixel copy",
    "nih": "ChestX-ray14 (Wang et al., CVPR 2017), a subset: adults, one hospital",
}


def model_card(manifest: dict[str, Any], result: dict[str, Any], train: Sequence[Picture]) -> str:
    """The card as Markdown, every figure from `result` and every count from `train`."""
    record, member = manifest["training"], manifest["members"][0]
    recipe, fitted = record["recipe"], record["calibration"]
    prevalence = fitted["positives"] / fitted["images"]
    points = manifest["targets"][0]["operating_points"]
    return _wrapped(f"""# Model card: {manifest["name"]} {manifest["release"]}

Written by `python -m training evaluate`; every figure is that of the shipped, rounded weights unless it says
otherwise, and stands in `evaluation.json` too.

## What it is

{member["title"]} ({member["citation"]}), {member["version"]}. From one image come the two heads' scores `p_cls` and
`p_ano`, the paper's `p_avg = (p_cls + p_ano / 5) / 2`, a calibrated probability, and a Grad-CAM of each head.
Input: {recipe["crop"]} pixels from the centre of {recipe["resize"]}; the outer {_percent(_margin(recipe))} of the image
on each side is not looked at.

## What it is for, and what not

For research, and for trying out the node it comes with. **It is not a medical device**, no doctor has tested it, and
no decision about a patient may rest on it. Frontal chest X-rays of adults only. It was not made for children, lateral
views, or images of anything else, and it answers them all the same.

## What the figures are worth

- The class nearly equals the source: COVID-19 is cohen and hannover, nearly everything normal is nih
  or kermany. A network
  can score high by telling the sources apart (DeGrave et al., Nature Machine Intelligence 2021). On this collection a
  random forest that saw only an 8-pixel frame of a thumbnail, and so no lung, reached an AUC of 0.99 against kermany
  and 0.92 against nih, but 0.64 against the other images of cohen. **Pooled figures are therefore no evidence of
  recognising disease.** The honest row is `cohen`, where both classes come from one source and negatives are few:
  out of fold this network reaches {_auc(result["out_of_fold"]["cohen"]["auc"])} there. {_against_the_forest(result)}
- kermany are children: telling them from adults with COVID-19 takes no lung either. Their specificity says little, and
  calibration and thresholds leave them out.
- Some cohen images are figures from papers, with arrows, letters and borders.
- `external` (figure1) is one small source that was never trained on, and gives sensitivity only.
- Intervals are 95 %: AUC by bootstrap over patients, proportions by Clopper-Pearson over images, which is too narrow
  where one patient has several images.
- The maps have 6 x 6 cells, drawn large; each is scaled to its own strongest place, so the map of an image without a
  finding shows nothing but noise. They say where a score came from, not where disease is: seen by eye on a few images
  of `val`, they lie over the middle of the chest more than over opacities.
- The network is small, started from random weights and trained for {recipe["epochs"]} short epochs on two CPU cores.
  Poor figures are given as they are.

## Figures

Two thresholds on the calibrated probability, fixed before `val` was scored: `balanced` (the default) has the largest
sum of sensitivity and specificity, {points["balanced"]["threshold"]:.4f}; `high-sensitivity` has an out-of-fold
sensitivity of at least 95 %, {points["high-sensitivity"]["threshold"]:.4f}. `adults` is cohen, hannover and nih
together (with the few children in them), `pooled` is everything.

A row of `index.csv` counts where it is a frontal film: `finding` is not `not_cxr` and `view` is not `LATERAL`. Positive
is `finding` equal to `covid19`, negative is every other. `dicom-node screen --json` on those files gives the same
probabilities.

### val: other patients of the same sources, scored once

{_table(result["val"])}
### external: a source never trained on

{_table(result["external"])}
### Out of fold: the training images, each scored by a network that never saw its patient

These networks have two thirds of the training images each; calibration and thresholds were fitted on the `adults` row,
so its figures flatter a little. Most negatives of `cohen` are here, so its row is the least uncertain answer to the
honest question.

{_table(result["out_of_fold"])}
### AUC of each score

{_scores_table(result)}
The paper reports 0.9518 for `p_avg` on other images, between two sources: 100 of COVID-19 (cohen) and 1,431 of other
pneumonia (nih).

## What the probability means

The sigmoid of a straight line in `p_avg` (Platt scaling), fitted on the out-of-fold scores of the
{fitted["images"]:,} adult training images, {_percent(prevalence)} of them COVID-19. It is the share of COVID-19 among
images like those; where COVID-19 is rarer, as nearly everywhere, the true share is lower. An
image that both heads call negative has a `p_avg` near 0 and so a probability near
{sigmoid(member["calibration"][manifest["targets"][0]["name"]]["intercept"]):.2f}: hardly any answer is lower. On `val`
the expected calibration error is {_calibration(result["val"]["adults"])} on the adults and
{_calibration(result["val"]["pooled"])} pooled.

## Training images and their licences

{len(train):,} frontal images of {len({p.patient_id for p in train}):,} patients; lateral views and CT slices were left
out. No image is part of this bundle.

{_licence_table(train)}
Several are for non-commercial use only and some allow no derivatives; whether weights are derived from images is not
settled, and the careful reading is taken: see `LICENSE-WEIGHTS.md`.

## How it was trained

`{record["command"]}`: {recipe["epochs"]} epochs of {recipe["images_per_epoch"]:,} images, batch {recipe["batch"]},
AdamW at {recipe["learning_rate"]:g} with cosine decay, seed {recipe["seed"]}; {recipe["folds"]} trainings on folds
grouped by patient, then one on all of `train`, whose {record["seconds_of_the_final_training"] / 60:.0f} minutes on
{record["hardware"]} made these weights. One run; nothing was tuned on `val` or `external`. Parts of an epoch:
{", ".join(f"{name} {_percent(share)}" for name, share in recipe["shares"].items())}.

Where this differs from the paper:

{_list(record["differences_from_the_paper"])}
""")


def _wrapped(markdown: str) -> str:
    """The same Markdown with paragraphs and list items filled to 120 columns."""
    lines: list[str] = []
    for line in markdown.splitlines():
        goes_on = line and lines and lines[-1] and not line.startswith(("#", "|", "- "))
        if goes_on and not lines[-1].startswith(("#", "|")):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    filled = [
        line if line.startswith("|") else textwrap.fill(line, 120, subsequent_indent="  " * line.startswith("- "))
        for line in lines
    ]
    return "\n".join(filled) + "\n"


def _margin(recipe: dict[str, Any]) -> float:
    return float((recipe["resize"] - recipe["crop"]) / 2 / recipe["resize"])


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _against_the_forest(result: dict[str, Any]) -> str:
    area = result["out_of_fold"]["cohen"]["auc"]
    if area["low"] > _FOREST_AUC:
        return "That is more than the lungless forest."
    return "The interval holds the forest's 0.64: **it is not shown that this network sees more than the forest.**"


def _calibration(found: dict[str, Any]) -> str:
    return f"{found['calibration']['ece']:.3f} (Brier score {found['calibration']['brier']:.3f})"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(figures: dict[str, Any]) -> str:
    rows = "| source | images (COVID-19) | patients | AUC | at | sensitivity | specificity |\n" + "|---" * 7 + "|\n"
    for source, found in figures.items():
        for index, (point, at) in enumerate(found["at"].items()):
            left = (
                f"{source} | {found['images']:,} ({found['positives']}) | {found['patients']:,} | {_auc(found['auc'])}"
                if index == 0
                else " | | |"
            )
            rows += f"| {left} | {point} | {_share(at['sensitivity'])} | {_share(at['specificity'])} |\n"
    return rows


def _scores_table(result: dict[str, Any]) -> str:
    table = "| images | `p_cls` | `p_ano` | `p_avg` |\n|---|---|---|---|\n"
    for split in ("val", "out_of_fold"):
        for source, found in result[split].items():
            if found["auc"] is not None:
                scores = found["auc_of_score"]
                cells = " | ".join(f"{scores[name]:.3f}" for name in ("p_cls", "p_ano", "p_avg"))
                table += f"| {split.replace('_', ' ')}, {source} | {cells} |\n"
    return table


def _auc(found: dict[str, float] | None) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else "one class"


def _share(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none"
    return f"{100 * found['value']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f}), n={found['n']}"


def _licence_table(train: Sequence[Picture]) -> str:
    table = "| source | images | what | licence of the images |\n|---|---|---|---|\n"
    for source, images in sorted(Counter(picture.source for picture in train).items()):
        licences = Counter(picture.licence for picture in train if picture.source == source)
        listed = "; ".join(f"{name}: {count:,}" for name, count in licences.most_common())
        table += f"| {source} | {images:,} | {_SOURCES[source]} | {listed} |\n"
    return table
