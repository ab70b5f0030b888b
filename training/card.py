"""The model card (Mitchell et al., Model Cards for Model Reporting, 2019): what a bundle is and is not for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dicom_node.evaluation.wording import NOTHING, difference, interval, share
from training.evaluation.groups import THRESHOLDS
from training.evaluation.tasks import COVID19
from training.evaluation.wording import best_baseline, duration, markdown_table, prose, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dicom_node.evaluation.shape import AtThreshold, Task
    from training.data.manifest import Picture

_SAME_SOURCE, _OUT_OF_FOLD, _VAL, _EXTERNAL = "covid19 against pneumonia", "covid19 against the rest", "val", "external"
_WITHIN = "pneumonia against normal"
_SOURCES = {
    "actualmed": "Actualmed COVID-19 chest X-ray data set: one group of hospitals",
    "chexpert": "CheXpert (Irvin et al., AAAI 2019): adults, one hospital",
    "cohen": "COVID-19 image data collection (arXiv:2006.11988): adults mostly, many hospitals, figures of papers",
    "figure1": "Figure 1 COVID-19 initiative: many hospitals",
    "hannover": "COVID-19 image repository, Hannover Medical School: one hospital, mostly bedside AP",
    "kermany": "Kermany et al., Mendeley Data v2: children, Guangzhou",
    "nih": "ChestX-ray14 (Wang et al., CVPR 2017): adults, one hospital",
}


def model_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any], train: Sequence[Picture]) -> str:
    """The card as Markdown, every figure from `evaluation` and every count from `train`."""
    record = manifest["training"]
    tasks, fitted = evaluation["combination"]["tasks"], record["calibration"]
    children = _and(fitted["left_out"])
    return _wrapped(f"""# Model card: {manifest["name"]} {manifest["release"]}

{judged_by(tasks)}

Written by `python -m training export`. Figures are of the shipped, rounded weights, and those out of fold of the
networks that the calibration was fitted on; all stand in `evaluation.json` and, drawn, in `evaluation.html`. The
sections are those of Mitchell et al., Model Cards for Model Reporting (2019).

## Model details

{_members(manifest)}
{_targets(manifest)}
A member's score becomes a logit by a straight line (Platt scaling), and the members' logits one by their weighted mean;
a member weighs as much as the two answers lie apart in what it says (probit of its AUC within each collection). Where
the members' logits spread too far, measured against the distance of their mean from the threshold, nothing is decided:
the answer is *indeterminate*.

{_list(trained(name, found) for name, found in record["members"].items())}

## Intended use

For research, and for trying out the node it comes with. **It is not a medical device**, no doctor has tested it, and
no decision about a patient may rest on it. Frontal chest X-rays. {_gate(manifest)}

## Factors

- The class nearly equals the source: a collection holds COVID-19 or the rest, seldom both. A network can score high by
  telling sources apart (DeGrave et al., Nature Machine Intelligence 2021), so figures stand source by source, and
  **pooled figures are no evidence of recognising disease**.
- Children ({children}): telling them from adults with COVID-19 takes no lung either. Their specificity says little, and
  calibration and thresholds leave them out.
- View, sex and age are no part of the input; subgroups by each stand in `evaluation.json`. Bedside images (AP) are of
  sicker patients than PA images.

## Metrics

Area under the ROC curve with a 95 % percentile interval over bootstrap draws of patients (near duplicates
together), and beside it that of the best of three random forests that see no lung; sensitivity and specificity with
95 % Clopper-Pearson intervals over images, which are too narrow where one patient has several images.

All shares count an image as positive where its probability is at or above the threshold, also where the members
disagree so far that nothing is decided and it is not flagged; the last columns say how many those are. Two thresholds
on each probability, fixed before `val` was scored: `balanced` (the default) has the largest sum of
sensitivity and specificity, `high-sensitivity` a sensitivity of at least 95 %. `val` and `external` are held against
these; out of fold, thresholds, weights and straight lines that are applied to a fold come from the other folds.

{_points(manifest)}

## Evaluation data

An image counts where it is a frontal film. Positive is the finding COVID-19, negative is every other. Out of fold means
the images of `train` and `val`, each scored by a network that never saw its patient or a near duplicate of it, with
weights, straight lines and thresholds of the other folds. `val` is those of these patients that the shipped networks
and what was fitted to them never saw; `external` is sources that were never trained on. `adults` is every source but
{children}, `pooled` is everything.
{_left_out(fitted, evaluation)}

## Training data

{len(train):,} frontal images of {len({picture.patient_id for picture in train}):,} patients. No image is part of this
bundle.

{_licences(train)}
Several are for non-commercial use only and some allow no derivatives; whether weights are derived from images is not
settled, and the careful reading is that the weights are for non-commercial use only.

## Quantitative analyses

### COVID-19 against other pneumonia of the same source, out of fold

{_table(tasks, _SAME_SOURCE)}
The thresholds of this table were chosen on the other folds' images of this very question; they are not the bundle's.

### COVID-19 against the rest, `val`

{_table(tasks, _VAL)}
### COVID-19 against the rest, `external`

{_table(tasks, _EXTERNAL)}
### COVID-19 against the rest, out of fold

{_table(tasks, _OUT_OF_FOLD)}
### Pneumonia against normal within a collection

By the answer to *any abnormality*, out of fold:

{_table(tasks, _WITHIN)}
### What each member is worth

Out of fold: the AUC of the ensemble, of each member alone in its place, and of the ensemble without it.

{_worth(evaluation["members"])}
What the papers report, on other images, stands beside ours in the project's `docs/reproduction.md`.

### What the probability means

That of COVID-19 was fitted on the out-of-fold scores of {fitted["images"]:,} training images of adults,
{100 * fitted["positives"] / fitted["images"]:.0f} % of them COVID-19: it is the share of COVID-19 among images like
those; those of pneumonia and any abnormality on collections that hold normal images too, as many images of each. Where
COVID-19 is rarer, as nearly everywhere, the true share is lower. {_calibration(tasks)}

## Ethical considerations

The images are public and were made anonymous by their owners; nobody in them was asked about this use. A missed disease
and a false alarm both do harm, and on whom the errors fall is not known: sex and age are missing for many images. Who
uses the bundle on patients' images needs the consent and the approval that their country asks for.

## Caveats and recommendations

{_list(_caveats(manifest))}
""")


def judged_by(tasks: Mapping[str, Task]) -> str:
    """The honest figure, before all others."""
    asked = [task for name, task in tasks.items() if name.startswith(_SAME_SOURCE) and task["figures"]["auc"]]
    if not asked:
        return (
            "**What it is worth is not known**: no source holds enough of both COVID-19 and other pneumonia, and "
            "figures across sources are no evidence of recognising disease."
        )
    task = max(asked, key=lambda task: task["figures"]["images"])
    figures, baseline = task["figures"], best_baseline(task["baselines"])
    beside = (
        f"A random forest that saw only {baseline['title']}, and so no lung, reaches {interval(baseline['auc'])} "
        f"there; the difference is {difference(baseline['difference'])}: **{verdict(baseline['difference'])}**."
        if baseline
        else "It was not compared with what sees no lung."
    )
    return (
        f"**The figure to judge it by**: {task['title']}, AUC {interval(figures['auc'])} on {figures['images']} images "
        f"of {figures['patients']} patients. {beside} Higher figures below are across sources, where no lung is needed."
    )


def _members(manifest: Mapping[str, Any]) -> str:
    rows = []
    for member in manifest["members"]:
        how = member["preprocessing"]
        crop, resize = how["crop"], how["resize"]
        options = ", ".join(f"{name} {_plain(value)}" for name, value in member["options"].items())
        rows.append(
            (
                f"{member['name']} {member['version']}",
                f"{member['architecture']}{f' ({options})' if options else ''}. {member['citation']}",
                f"{crop} px{f' from the centre of {resize}' if crop < resize else ''}, {how['standardise']}",
                "; ".join(f"{question}: {_read(one)}" for question, one in member["calibration"].items()),
                ", ".join(
                    f"{target['name']} {target['weights'][member['name']]:.2f}"
                    for target in manifest["targets"]
                    if member["name"] in target["weights"]
                ),
            )
        )
    return markdown_table(("member", "network", "input, standardised", "scores", "weights"), rows)


def _read(calibration: Mapping[str, Any]) -> str:
    over = calibration.get("over")
    return f"{calibration['output']} over {over}" if over else calibration["output"]


def _targets(manifest: Mapping[str, Any]) -> str:
    lines = []
    for target in manifest["targets"]:
        line = f"`{target['name']}`, {target['title']}: the probability of it"
        if condition := target.get("condition"):
            line += (
                f", if the image is abnormal; halved where the answer to `{condition['target']}` is "
                f"{condition['threshold']:g}, and lower still below"
            )
        lines.append(line)
    return f"{len(lines)} question{'s are' if len(lines) > 1 else ' is'} answered:\n\n{_list(lines)}\n"


def _points(manifest: Mapping[str, Any]) -> str:
    rows = []
    for target in manifest["targets"]:
        apart = target.get("disagreement")
        for index, (name, point) in enumerate(target["operating_points"].items()):
            undecided = f"{100 * point['undecided']:.0f} %" if point.get("undecided") is not None else ""
            if apart and not index:
                undecided += (
                    f" ({100 * apart['error_beyond']:.0f} % of them would be wrong, {100 * apart['error']:.0f} % of "
                    "the others are)"
                )
            shares = (_with_interval(point, kind) for kind in ("sensitivity", "specificity"))
            least = point.get("flagged_sensitivity")
            flagged = NOTHING if least is None else f"{least:.3f}"
            rows.append(
                (target["name"] if not index else "", name, f"{point['threshold']:.4f}", *shares, flagged, undecided)
            )
    head = (
        "question", "operating point", "threshold", "sensitivity", "specificity",
        "sensitivity, undecided counted as missed", "indeterminate",
    )  # fmt: skip
    return "Measured out of fold on the images that they were chosen on:\n\n" + markdown_table(head, rows)


def _with_interval(point: Mapping[str, Any], kind: str) -> str:
    low, high = point[f"{kind}_interval"]
    return f"{point[kind]:.3f} [{low:.3f}, {high:.3f}]"


def _share(counted: Sequence[int]) -> float:
    shown, declined = counted
    return declined / shown if shown else 0.0


def _gate(manifest: Mapping[str, Any]) -> str:
    """What is declined by its pixels."""
    if not (gate := manifest.get("gate")):
        return "It was not made for lateral views, or images of anything else, and it answers them all the same."
    measured = gate["measured"]
    told = [
        f"{name} {declined} of {shown}"
        for name, (shown, declined) in measured.items()
        if not name.startswith("other") and "turned" not in name
    ]
    others = [counts for name, counts in measured.items() if name.startswith("other")]
    if others:  # never pooled: noise, which is easily told, would carry the rest
        extremes = " to ".join(f"{d} of {n}" for n, d in (min(others, key=_share), max(others, key=_share)))
        told.append(f"of {len(others)} families of drawings that are no X-ray, each left out in turn, from {extremes}")
    return (
        "A gate declines what it does not take for one, and turns and inverts what stands wrong. Declined were, of "
        f"images that it had not been fitted on: {'; '.join(told)}. Other body parts were hardly at hand. It "
        "was trained on children too (kermany), and does not decline them; only pneumonia and abnormality were "
        "measured on them."
    )


def trained(name: str, record: Mapping[str, Any]) -> str:
    """How the member was trained, from its `training.export.provenance`."""
    recipe = record["recipe"]
    final = next(run for run in record["runs"] if run["name"] == "final")
    images = f"{recipe['images_per_epoch']:,} of {final['train']:,}" if recipe["images_per_epoch"] else final["train"]
    how = (
        f"{recipe['epochs']} epochs of {images} images, batch {recipe['batch'] * recipe['accumulate']}, "
        f"{recipe['optimiser']} at {recipe['learning_rate']:g}"
        if recipe["epochs"]
        else f"Its last layer, fitted on {final['train']} images and their mirror images"
    )
    if recipe["options"].get("lungs"):
        how += (
            "; what tells the lungs was fitted once, on the outlined lungs of split train, those of patients that a "
            "fold tests among them"
        )
    return (
        f"{name}: `{record['command']}`. {how}, seed {record['seed']}, backbone's weights: {recipe['weights']}. "
        f"The shipped weights took {duration(final['seconds'])} on {record['hardware']}; begun "
        f"{record['started']}."
    )


def _left_out(fitted: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    said = ""
    if fitted["not_scored"]:
        said += (
            f"{fitted['not_scored']:,} training images have no score out of fold, as a paper has no class for them or "
            "they cannot be read: calibration, thresholds and figures out of fold are without those. "
        )
    if evaluation["unreadable"]:
        said += f"{evaluation['unreadable']:,} images of `val` and `external` could not be read and are left out."
    return said


def _table(tasks: Mapping[str, Task], prefix: str) -> str:
    """One row for each question of that kind and each threshold."""
    rows = []
    for name, task in tasks.items():
        where = name.removeprefix(f"{prefix}, ")
        if (where == name and name != prefix) or " against " in where.removeprefix(prefix):
            continue  # another question; what stands behind "val, " may be one
        figures, baseline = task["figures"], best_baseline(task["baselines"])
        asked = (
            where if name != prefix else ", ".join(task["sources"]),
            f"{figures['images']:,} ({figures['positives']:,})",
            f"{figures['patients']:,}",
            interval(figures["auc"]),
            interval(baseline["auc"]) if baseline else NOTHING,
        )
        for index, (threshold, at) in enumerate(figures["at"].items()):
            point = THRESHOLDS[threshold][0]
            left = asked if index == 0 else ("",) * len(asked)
            rows.append((*left, point, share(at["sensitivity"]), _specificity(at)))
        if not figures["at"]:
            rows.append((*asked, NOTHING, NOTHING, NOTHING))
    head = ("source", "images (COVID-19)", "patients", "AUC", "best AUC without a lung", "at")
    return markdown_table((*head, "sensitivity", "specificity"), rows) if rows else "There are too few images for it.\n"


def _specificity(at: AtThreshold) -> str:
    """Of images of one class only, what the threshold gave where it was chosen."""
    chosen = at.get("specificity_when_chosen")
    return f"{share(chosen)} out of fold" if chosen and not at["specificity"] else share(at["specificity"])


def _worth(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row for each question and member."""
    found = []
    for row in rows:
        asked = f"{row['question']}, {row['where']} ({row['images']:,})"
        found.append((asked, "all", interval(row["ensemble"]), "", ""))
        if row["question"] == COVID19:
            found.append(("", "all, unless it is withdrawn as normal", interval(row["unconditional"]), "", ""))
        names = list(dict.fromkeys([*row["members"], *row["without"]]))
        for name in names:
            alone, left_out = row["members"].get(name), row["without"].get(name)
            found.append(
                (
                    "",
                    name,
                    interval(alone) if alone else NOTHING,
                    interval(left_out["auc"]) if left_out else NOTHING,
                    difference(left_out["loss"]) if left_out else NOTHING,
                )
            )
    return markdown_table(("question, where (images)", "member", "alone", "without it", "lost without it"), found)


def _licences(train: Sequence[Picture]) -> str:
    rows = []
    for source, images in sorted(Counter(picture.source for picture in train).items()):
        licences = Counter(picture.licence for picture in train if picture.source == source)
        listed = "; ".join(f"{name}: {count:,}" for name, count in licences.most_common())
        rows.append((source, f"{images:,}", _SOURCES.get(source, source), listed))
    return markdown_table(("source", "images", "what", "licence of the images"), rows)


def _calibration(tasks: Mapping[str, Task]) -> str:
    found = ((name, tasks[name]["calibration"]) for name in (f"{_VAL}, adults", f"{_VAL}, pooled") if name in tasks)
    return " ".join(
        f"On `{name.replace(', ', '`, ')}, the expected calibration error is {errors['ece']:.3f}, the Brier score "
        f"{errors['brier']:.3f}."
        for name, errors in found
        if errors
    )


def _caveats(manifest: Mapping[str, Any]) -> list[str]:
    found = [
        "Test it on images of your own hospital, both classes from the same machines, before believing any figure.",
        "Heatmaps say where a score came from, not where disease is.",
        "A heatmap is scaled to its own strongest place: that of an image without a finding shows noise.",
        "Some images of cohen and figure1 are figures from papers, with arrows, letters and borders.",
    ]
    for member in manifest["members"]:
        how = member["preprocessing"]
        if margin := (how["resize"] - how["crop"]) / 2 / how["resize"]:
            found.append(f"{member['name']} does not look at the outer {100 * margin:.0f} % of the image on each side.")
    target, records = manifest["targets"][0], manifest["training"]["members"]
    for member in manifest["members"]:
        upwards = not records[member["name"]]["recipe"]["score"].startswith("-")
        scaling = member["calibration"].get(target["name"])
        if scaling and not target.get("condition") and (scaling["slope"] > 0) != upwards:
            found.append(
                f"{member['name']} answers the wrong way round: out of fold its score was lower for COVID-19 than for "
                "the rest, against the paper's idea, and the calibration has turned it."
            )
    for name, record in records.items():
        found += [f"{name} differs from its paper: {line}" for line in record["differences"]]
    return found


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _and(words: Iterable[str]) -> str:
    """The words as a sentence lists them."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _wrapped(markdown: str) -> str:
    """The same Markdown with paragraphs and list items filled to 120 columns."""
    lines: list[str] = []
    for line in markdown.splitlines():
        goes_on = line and lines and lines[-1] and not line.startswith(("#", "|", "- "))
        if goes_on and not lines[-1].startswith(("#", "|")):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "".join(f"{line if line.startswith('|') else prose(line, '  ' * line.startswith('- '))}\n" for line in lines)
