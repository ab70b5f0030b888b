from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from training.data.manifest import Picture
from training.evaluation.rows import Rows
from training.evaluation.tasks import (
    COVID19,
    PNEUMONIA,
    Scored,
    age_group,
    both_answers,
    combined,
    covid19_tasks,
    learnt,
    own_task,
    pneumonia_tasks,
    scored,
    together,
)
from training.recipe import Recipe

FEW = 50  # bootstrap draws
# source, finding, split, view, images
STRATA = (
    ("cohen", "covid19", "train", "PA", 60),
    ("cohen", "covid19", "val", "AP", 30),
    ("cohen", "pneumonia", "train", "PA", 40),
    ("cohen", "pneumonia", "val", "AP", 10),
    ("cohen", "normal", "train", "PA", 5),
    ("hannover", "covid19", "train", "AP", 20),
    ("nih", "normal", "train", "PA", 40),
    ("nih", "pneumonia", "train", "PA", 40),
    ("kermany", "normal", "train", "AP", 50),
    ("kermany", "pneumonia", "val", "AP", 50),
)


def pictures() -> list[Picture]:
    return [
        Picture(
            f"{s}-{f}-{x}-{i}", Path("a.png"), x, s, f"{s}-{f}-{x}-{i // 2}", f, v, sex="MF"[i % 2], age=str(i)
        )
        for s, f, x, v, n in STRATA
        for i in range(n)
    ]  # fmt: skip


def asked(score, name: str = "p_covid19", shown: list[Picture] | None = None, run: str = "") -> Scored:
    """Scores made from pictures, in five folds by patient."""
    shown = pictures() if shown is None else shown
    rng = np.random.default_rng(0)
    fold_of = {patient: i % 5 for i, patient in enumerate(dict.fromkeys(p.patient_id for p in shown))}
    scores = np.array([score(picture, rng) for picture in shown], dtype=float)
    runs = np.array([run or f"fold{fold_of[p.patient_id]}" for p in shown])
    return Scored(tuple(shown), name, scores, scores, runs)


def by_source(picture: Picture, rng: np.random.Generator) -> float:
    """A network that knows the source and nothing of the disease."""
    return {"cohen": 3.0, "hannover": 4.0}.get(picture.source, 0.0) + rng.random()


def by_disease(picture: Picture, rng: np.random.Generator) -> float:
    return 2.0 * (picture.finding == "covid19") + rng.random()


def external(positives: int = 12) -> list[Picture]:
    return [
        Picture(f"e{i}", Path("e.png"), "external", "figure1", f"e{i}", "covid19" if i < positives else "normal")
        for i in range(positives + 3)
    ]


def test_a_network_that_tells_sources_apart_shines_pooled_and_fails_within_the_source():
    found = covid19_tasks(asked(by_source), None, resamples=FEW)
    pooled = found["covid19 against the rest, pooled"]["figures"]
    honest = found["covid19 against pneumonia, cohen"]["figures"]
    assert pooled["auc"]["value"] > 0.85
    assert honest["auc"]["low"] < 0.5 < honest["auc"]["high"]
    assert len(honest["auc"]["of_runs"]["values"]) == 5
    assert (honest["images"], honest["positives"], honest["patients"]) == (140, 90, 70)
    assert found["covid19 against pneumonia, cohen, PA"]["figures"]["images"] == 100


def test_a_network_that_sees_the_disease_is_right_everywhere():
    found = covid19_tasks(asked(by_disease), None, resamples=FEW)
    for name in ("covid19 against pneumonia, cohen", "covid19 against the rest, adults"):
        assert found[name]["figures"]["auc"]["value"] == 1
        at = found[name]["figures"]["at"]["youden"]
        assert at["sensitivity"]["value"] == at["specificity"]["value"] == 1
        assert len(at["thresholds"]) > 1, "each fold has its own"
    assert list(found) == [
        "covid19 against pneumonia, cohen",
        "covid19 against pneumonia, cohen, PA",
        *(f"covid19 against the rest, {name}" for name in ("cohen", "hannover", "kermany", "nih", "adults", "pooled")),
    ]


def test_a_source_with_one_answer_has_a_rate_and_no_area():
    found = covid19_tasks(asked(by_disease), None, resamples=FEW)
    only_ill, only_others = (found[f"covid19 against the rest, {name}"] for name in ("hannover", "nih"))
    for task in (only_ill, only_others):
        assert task["figures"]["auc"] is None
        assert task["calibration"] is None
        assert task["subgroups"] == {}
    assert only_ill["figures"]["at"]["youden"]["sensitivity"]["n"] == 20
    assert only_ill["figures"]["at"]["youden"]["specificity"] is None
    assert only_others["figures"]["at"]["youden"]["specificity"]["n"] == 80


def test_thresholds_and_calibration_of_a_fold_come_from_the_other_folds():
    one = asked(by_disease)
    in_fold = one.runs == "fold0"
    other = Scored(one.pictures, one.name, np.where(in_fold, -7.0, one.scores), one.outputs, one.runs)
    before, after = (learnt(found, found, COVID19, "") for found in (one, other))
    for name, thresholds in before.thresholds.items():
        assert (thresholds[in_fold] == after.thresholds[name][in_fold]).all()
        assert len(set(thresholds[in_fold])) == 1
    changed = Scored(one.pictures, one.name, one.scores, np.where(in_fold, -one.outputs, one.outputs), one.runs)
    assert (learnt(changed, one, COVID19, "").logits != before.logits)[in_fold].all()
    assert (learnt(changed, one, COVID19, "").logits == before.logits)[~in_fold].all()


def test_children_move_no_threshold():
    everyone = asked(by_disease)
    loud = Scored(
        everyone.pictures,
        everyone.name,
        np.where([p.source == "kermany" for p in everyone.pictures], 50.0, everyone.scores),
        everyone.outputs,
        everyone.runs,
    )
    one, other = (covid19_tasks(found, None, resamples=FEW) for found in (everyone, loud))
    for name in ("covid19 against the rest, cohen", "covid19 against the rest, pooled"):
        a, b = (found[name]["figures"]["at"]["youden"] for found in (one, other))
        assert a["thresholds"] == b["thresholds"]
    assert other["covid19 against the rest, kermany"]["figures"]["at"]["youden"]["specificity"]["value"] == 0


def test_sensitivity_on_an_unseen_source_is_at_the_frozen_threshold():
    def final(picture: Picture, rng: np.random.Generator) -> float:
        return 9.0 if picture.image_id in ("e0", "e1", "e2") or picture.split == "val" else 0.0

    out_of_fold = asked(by_disease)
    shown = [p for p in pictures() if p.split == "val"] + external()
    found = covid19_tasks(out_of_fold, asked(final, shown=shown, run="final"), resamples=FEW)
    at = found["external"]["figures"]["at"]["youden"]
    exact = binomtest(3, 12).proportion_ci(method="exact")
    assert (at["sensitivity"]["hits"], at["sensitivity"]["n"]) == (3, 12)
    assert (at["sensitivity"]["low"], at["sensitivity"]["high"]) == pytest.approx((exact.low, exact.high))
    assert at["specificity"] is None
    assert found["external"]["figures"]["auc"] is None
    assert len(at["thresholds"]) == 1
    train = np.array([p.split == "train" and p.source != "kermany" for p in out_of_fold.pictures])
    low = out_of_fold.scores[train & ~out_of_fold.finding(COVID19)].max()
    high = out_of_fold.scores[train & out_of_fold.finding(COVID19)].min()
    assert at["thresholds"][0] == pytest.approx((low + high) / 2)
    assert found["val, cohen"]["figures"]["at"]["youden"]["specificity"]["value"] == 0
    assert [name for name in found if name.startswith("val")] == [
        "val, cohen", "val, kermany", "val, pooled"
    ]  # fmt: skip


def test_the_external_sensitivity_stands_beside_the_specificity_where_its_threshold_was_chosen():
    out_of_fold = asked(lambda picture, rng: (picture.finding == "covid19") + 2 * rng.random())
    found = covid19_tasks(out_of_fold, asked(by_disease, shown=external(), run="final"), resamples=FEW)
    fit = out_of_fold.those(lambda picture: picture.split == "train" and picture.source != "kermany")
    others = fit.scores[~fit.finding(COVID19)]
    for point in found["external"]["figures"]["at"].values():
        expected = (others < point["thresholds"][0]).mean()
        assert 0 < expected < 1
        assert point["specificity_when_chosen"]["value"] == pytest.approx(expected)
        assert point["specificity_when_chosen"]["n"] == len(others)


def test_a_twin_of_a_trained_source_that_was_moved_to_external_is_of_no_unseen_source():
    moved = [Picture(source, Path("a.png"), "external", source, source, "covid19") for source in ("cohen", "hannover")]
    final = asked(by_disease, shown=[*external(), *moved], run="final")
    task = covid19_tasks(asked(by_disease), final, resamples=FEW)["external"]
    assert task["sources"] == ["figure1"]
    assert task["figures"]["images"] == 12


def test_the_bootstrap_draws_patients_of_near_duplicates_together():
    alone = asked(by_source)
    joined = [replace(picture, cluster=f"{picture.source}-{int(picture.age) // 8}") for picture in alone.pictures]
    one, other = (
        covid19_tasks(replace(alone, pictures=shown), None, resamples=200)["covid19 against pneumonia, cohen"]
        for shown in (alone.pictures, tuple(joined))
    )
    assert one["figures"]["auc"]["value"] == other["figures"]["auc"]["value"]
    assert one["figures"]["auc"]["low"] != other["figures"]["auc"]["low"]
    assert one["figures"]["patients"] == other["figures"]["patients"] == 70
    assert len(set(asked(by_source, shown=joined).groups)) < len({picture.patient_id for picture in joined})


def test_subgroups_hold_every_image_once():
    task = covid19_tasks(asked(by_disease), None, resamples=FEW)["covid19 against pneumonia, cohen"]
    for kind in ("view", "sex", "age"):
        groups = task["subgroups"][kind]
        assert sum(group["images"] for group in groups.values()) == 140
        assert sum(group["positives"] for group in groups.values()) == 90
        assert all(group["auc"] is None or group["auc"]["value"] == 1 for group in groups.values())
    assert set(task["subgroups"]["view"]) == {"PA", "AP"}


@pytest.mark.parametrize(
    ("age", "band"),
    [("0", "under 18"), ("17.9", "under 18"), ("18", "18 to 39"), ("59", "40 to 59"), ("60", "60 and over"),
     ("", "not stated"), ("adult", "not stated"), ("nan", "not stated")],
)  # fmt: skip
def test_ages_fall_in_four_bands(age, band):
    assert age_group(Picture("a", Path("a"), "", "s", "p", "normal", age=age)) == band


def test_the_baseline_is_asked_the_same_images_labels_and_folds():
    calls = []

    def forests(shown, positive, folds):
        calls.append((len(shown), int(positive.sum()), set(folds)))
        return {"frame": ("an 8-pixel frame", np.arange(len(shown), dtype=float))}

    found = covid19_tasks(asked(by_disease), None, forests, resamples=FEW)
    assert calls[0] == (140, 90, {f"fold{i}" for i in range(5)})
    assert len(calls) == 5, "one for each task with two answers"
    for task in found.values():
        if baseline := task["baselines"].get("frame"):
            expected = task["figures"]["auc"]["value"] - baseline["auc"]["value"]
            assert baseline["difference"]["value"] == pytest.approx(expected)
            assert baseline["difference"]["low"] <= expected <= baseline["difference"]["high"]


def test_pneumonia_is_asked_within_each_source_that_has_both():
    found = pneumonia_tasks(asked(lambda p, rng: (p.finding == "pneumonia") + rng.random()), resamples=FEW)
    # cohen has five normal images: too few
    assert list(found) == ["pneumonia against normal, kermany", "pneumonia against normal, nih"]
    assert found["pneumonia against normal, nih"]["figures"]["images"] == 80
    assert found["pneumonia against normal, nih"]["figures"]["auc"]["value"] == 1


# Which score answers which question


def recipe(classes: tuple[str, ...], score: str, train_on: tuple[str, ...] = ()) -> Recipe:
    return Recipe(
        "x", "main", "small", "X", classes, "cross_entropy", score, 32, 32, 1, 1e-3, 4, "sgd", train_on=train_on
    )


def rows(classes: tuple[str, ...], **scores: list[float]) -> tuple[Rows, dict[str, Picture]]:
    shown = {p.image_id: p for p in pictures()[:3]}
    ids = np.array(list(shown))
    columns = {name: np.array(values) for name, values in scores.items()}
    return Rows(np.array(["fold0"] * 3), ids, ids, ids, np.zeros(3, dtype=int), classes, columns), shown


def test_a_network_of_several_classes_answers_pneumonia_by_the_share_of_two():
    classes = ("covid19", "normal", "pneumonia")
    p = np.array([[0.2, 0.3, 0.5], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1]])
    odds = np.log(p / (1 - p))
    names = {f"p_{c}": p[:, i].tolist() for i, c in enumerate(classes)}
    table, shown = rows(classes, **names, **{f"logit_{c}": odds[:, i].tolist() for i, c in enumerate(classes)})
    three = recipe(classes, "p_covid19")
    found = scored(table, three, "covid19", shown, PNEUMONIA)
    assert found.scores == pytest.approx(p[:, 2] / (p[:, 2] + p[:, 1]))
    found = scored(table, three, "covid19", shown)
    assert found.scores == pytest.approx(p[:, 0])
    assert found.outputs == pytest.approx(odds[:, 0])


def test_a_network_of_two_classes_answers_what_it_was_trained_for():
    table, shown = rows(("other", "covid19"), p_cls=[0.1, 0.2, 0.3], p_avg=[1.0, 2.0, 3.0])
    two = recipe(("other", "covid19"), "p_avg")
    assert scored(table, two, "covid19", shown).scores.tolist() == [1, 2, 3]
    assert scored(table, two, "covid19", shown, PNEUMONIA) is None
    assert scored(table, two, "pneumonia", shown) is None
    assert scored(table, two, "pneumonia", shown, PNEUMONIA).name == "p_avg"


def test_an_anomaly_detector_answers_both_by_its_anomaly_score():
    table, shown = rows(("normal", "covid19"), reconstruction_error=[0.1, 0.2, 0.3])
    detector = recipe(("normal", "covid19"), "reconstruction_error", ("normal",))
    for positive in (COVID19, PNEUMONIA):
        assert scored(table, detector, "covid19", shown, positive).scores.tolist() == [0.1, 0.2, 0.3]


# Combination


def test_members_are_calibrated_before_they_are_averaged():
    def loud(picture: Picture, rng: np.random.Generator) -> float:
        return 1e6 * rng.random()  # says nothing, in large numbers

    first, second = asked(by_disease), asked(loud)
    out_of_fold, final = combined([(first, None), (second, None)])
    assert final is None
    assert out_of_fold.calibrated
    truth = out_of_fold.finding(COVID19)
    assert roc_auc_score(truth, out_of_fold.scores) > 0.98
    found = covid19_tasks(out_of_fold, None, resamples=FEW)["covid19 against the rest, adults"]
    # the logits are taken as they are: the mean of a good and a useless member is too timid
    assert found["calibration"]["slope"] is None or found["calibration"]["slope"] > 1
    alone, _ = combined([(first, None)])
    adults = first.those(lambda picture: picture.split == "train" and picture.source != "kermany")
    assert alone.outputs == pytest.approx(learnt(first, adults, COVID19, "").logits)


def test_a_question_within_collections_is_answered_by_the_mean_of_standardised_outputs():
    def loud(picture: Picture, rng: np.random.Generator) -> float:
        return 1e6 * (picture.finding == COVID19) + 1e6 * rng.random()

    first, second = asked(by_disease), asked(loud)
    found = together([first, second], COVID19, PNEUMONIA)
    assert {picture.source for picture in found.pictures} == {"cohen"}, "hannover holds one answer only"
    truth = found.finding(COVID19)
    assert len(found) == 140
    assert roc_auc_score(truth, found.scores) > 0.98
    here = found.runs == "fold0"
    alone = both_answers(first, COVID19, PNEUMONIA)
    others = alone.outputs[~here]
    expected = (alone.outputs[here] - others.mean()) / others.std()
    assert together([first], COVID19, PNEUMONIA).scores[here] == pytest.approx(expected)


def test_a_network_weighs_what_it_tells_in_the_other_folds():
    def wrong(picture: Picture, rng: np.random.Generator) -> float:
        return rng.random() - (picture.finding == COVID19)

    def more(by: float) -> Callable[[Picture, np.random.Generator], float]:
        return lambda picture, rng: rng.random() + by * (picture.finding == COVID19)

    right, useless, weak = asked(more(0.7)), asked(wrong), asked(more(0.3))
    alone = together([right], COVID19, PNEUMONIA)
    assert together([right, useless], COVID19, PNEUMONIA).scores == pytest.approx(alone.scores, abs=1e-6)
    both = together([right, weak], COVID19, PNEUMONIA)
    here = both.runs == "fold0"
    one, other = (both_answers(member, COVID19, PNEUMONIA) for member in (right, weak))
    apart = []
    for member in (one, other):
        truth = member.finding(COVID19)
        apart.append(norm.ppf(roc_auc_score(truth[~here], member.outputs[~here])))
    standardised = [
        (member.outputs[here] - member.outputs[~here].mean()) / member.outputs[~here].std() for member in (one, other)
    ]
    assert both.scores[here] == pytest.approx(np.average(standardised, axis=0, weights=apart))


def test_the_final_networks_are_calibrated_on_what_was_out_of_fold():
    shown = [p for p in pictures() if p.split == "val"] + external()
    first, last = asked(by_disease), asked(by_disease, shown=shown, run="final")
    _, final = combined([(first, last), (first, last)])
    assert len(final) == len(shown)
    train = first.those(lambda picture: picture.split == "train" and picture.source != "kermany")
    assert final.outputs == pytest.approx(learnt(last, train, COVID19, "").logits)


def test_an_image_that_one_member_has_not_is_left_out():
    first, short = asked(by_disease), asked(by_disease, shown=pictures()[:-7])
    assert len(combined([(first, None), (short, None)])[0]) == len(first) - 7


def test_where_one_run_tests_all_images_the_forests_take_folds_of_them_among_themselves():
    in_folds, one_run = asked(by_disease), asked(by_disease, run="holdout")
    seen = []

    def forests(pictures, positive, folds):
        seen.append(folds)
        return {"frame": ("a frame", positive + 0.0)}

    (task,) = own_task(one_run, forests, resamples=20).values()
    assert task["baselines"]["frame"]["auc"]["value"] == 1
    assert task["calibration"] is None  # there are no other images to learn it on
    (folds,) = seen
    assert len(set(folds.tolist())) == 5
    assert len({*zip(one_run.patients, folds.tolist(), strict=True)}) == len(set(one_run.patients))
    own_task(in_folds, forests, resamples=20)
    assert seen[1].tolist() == in_folds.runs.tolist()
