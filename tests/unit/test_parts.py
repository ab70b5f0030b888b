"""What is measured out of fold was fitted on other folds, and what each member is worth."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.score_factories import FOUR, ONE_CLASS, TWO, one_class, pictures, said, together, two_classes
from training.evaluation.parts import nested, scored, what_members_are_worth
from training.targets import fit_targets

# Large enough for every question to be fitted without one of the folds.
COLLECTIONS = (
    ("cohen", "covid19", 60), ("cohen", "pneumonia", 60), ("nih", "normal", 45), ("nih", "pneumonia", 45),
)  # fmt: skip
SHOWN = [*pictures(COLLECTIONS), *pictures((("cohen", "covid19", 8), ("nih", "normal", 8)), split="val")]
RUNS = np.array([f"fold{i % 5}" for i in range(len(SHOWN))])
BOTH = {"good": FOUR, "poor": FOUR}
FEW = 20  # bootstrap draws


@pytest.fixture(scope="module")
def scores():
    return together(good=said(SHOWN, 1, skill=2.0), poor=said(SHOWN, 2, skill=0.8))


@pytest.fixture(scope="module")
def whole(scores):
    return nested(BOTH, SHOWN, scores, RUNS)


def other_finding(picture):
    other = {"covid19": "pneumonia", "pneumonia": "covid19", "normal": "normal"}
    return replace(picture, finding=other[picture.finding])


def changed(shown, which):
    return [other_finding(picture) if chosen else picture for picture, chosen in zip(shown, which, strict=True)]


def logits(answers, chosen, question="covid19"):
    return np.array([answers[i][question].logit for i in np.flatnonzero(chosen)])


# Nested


def test_the_findings_of_a_fold_change_none_of_its_answers_and_all_others(scores, whole):
    here = RUNS == "fold2"
    again = nested(BOTH, changed(SHOWN, here), scores, RUNS)
    assert [again[i] for i in np.flatnonzero(here)] == [whole[i] for i in np.flatnonzero(here)]
    assert not np.isclose(logits(again, ~here), logits(whole, ~here)).any()


def test_the_scores_of_a_fold_change_no_weight_that_it_is_answered_by(scores, whole):
    one = int(np.flatnonzero(RUNS == "fold2")[0])
    others = [i for i in range(len(SHOWN)) if RUNS[i] == "fold2" and i != one]
    spoilt = [scores[i] if i not in others else scores[one] for i in range(len(SHOWN))]
    assert nested(BOTH, SHOWN, spoilt, RUNS)[one] == whole[one]


def test_nothing_of_val_is_fitted_on_though_it_is_answered(scores, whole):
    val = np.array([picture.split == "val" for picture in SHOWN])
    again = nested(BOTH, changed(SHOWN, val), scores, RUNS)
    assert again == whole
    assert all("covid19" in answer for answer in again)


def test_a_fold_is_answered_by_what_the_others_train_images_fit(scores, whole):
    rest = [i for i, picture in enumerate(SHOWN) if picture.split == "train" and RUNS[i] != "fold4"]
    fitted = fit_targets(BOTH, [SHOWN[i] for i in rest], [scores[i] for i in rest])
    here = np.flatnonzero(RUNS == "fold4").tolist()
    assert fitted.answers([scores[i] for i in here]) == [whole[i] for i in here]


def test_a_member_that_is_right_on_one_fold_only_has_no_say_there_and_some_elsewhere():
    here = RUNS == "fold0"
    lucky = said(SHOWN, 3, two_classes, skill=0.0)
    lucky = [
        {"logit_covid19": 6.0 if picture.finding == "covid19" else -6.0} if first else one
        for one, picture, first in zip(lucky, SHOWN, here, strict=True)
    ]
    plain = said(SHOWN, 4, two_classes, skill=1.0)
    readings = {"lucky": TWO, "plain": TWO}
    found = nested(readings, SHOWN, together(lucky=lucky, plain=plain), RUNS)
    truth = np.array([picture.finding == "covid19" for picture in SHOWN])
    alone = [found[i]["covid19"].members["lucky"] for i in np.flatnonzero(here)]
    assert abs(roc_auc_score(truth[here], alone) - 0.5) == 0.5, "perfect, or perfectly wrong: its sign is noise"
    by_plain = np.array([plain[i]["logit_covid19"] for i in np.flatnonzero(here)])
    assert np.corrcoef(logits(found, here), by_plain)[0, 1] > 0.9
    # A fit that sees the fold, too, falls for it.
    train = [i for i, picture in enumerate(SHOWN) if picture.split == "train"]
    fooled = fit_targets(readings, [SHOWN[i] for i in train], [{"lucky": lucky[i], "plain": plain[i]} for i in train])
    honest = fit_targets(
        readings,
        [SHOWN[i] for i in train if not here[i]],
        [{"lucky": lucky[i], "plain": plain[i]} for i in train if not here[i]],
    )
    assert fooled.targets[0].weights["lucky"] > 2 * honest.targets[0].weights["lucky"]


def test_what_is_scored_are_the_answers_logits_and_their_probabilities(whole):
    found = scored(SHOWN, whole, "abnormal", RUNS)
    assert found.calibrated
    assert found.outputs.tolist() == logits(whole, np.ones(len(SHOWN), dtype=bool), "abnormal").tolist()
    assert found.scores == pytest.approx(1 / (1 + np.exp(-found.outputs)))
    assert found.runs.tolist() == RUNS.tolist()


# What each member is worth


@pytest.fixture(scope="module")
def rows(scores):
    return what_members_are_worth(BOTH, SHOWN, scores, RUNS, FEW)


def test_a_row_for_each_question_within_a_collection_that_holds_both_answers(rows):
    assert [(row["question"], row["where"], row["images"], row["positives"]) for row in rows] == [
        ("covid19", "cohen", 128, 68),
        ("covid19", "cohen, PA", 64, 34),
        ("abnormal", "nih", 98, 45),
        ("pneumonia", "nih", 98, 45),
    ]


def test_the_areas_of_a_row_are_those_of_the_nested_answers(rows, scores, whole):
    row, rest = rows[0], nested({"good": FOUR}, SHOWN, scores, RUNS)
    chosen = np.array([picture.source == "cohen" for picture in SHOWN])
    truth = np.array([picture.finding == "covid19" for picture in SHOWN])[chosen]
    here = np.flatnonzero(chosen)
    assert row["ensemble"]["value"] == roc_auc_score(truth, logits(whole, chosen))
    unconditional = [whole[i]["covid19"].unconditional for i in here]
    assert row["unconditional"]["value"] == roc_auc_score(truth, unconditional)
    for name, area in row["members"].items():
        assert area["value"] == roc_auc_score(truth, [whole[i]["covid19"].members[name] for i in here])
    assert row["without"]["poor"]["auc"]["value"] == roc_auc_score(truth, logits(rest, chosen))
    assert row["without"]["poor"]["loss"]["value"] == pytest.approx(
        row["ensemble"]["value"] - row["without"]["poor"]["auc"]["value"]
    )


def test_the_ensemble_is_held_against_the_best_member(rows):
    for row in rows:
        assert set(row["members"]) == set(row["without"]) == {"good", "poor"}
        assert row["best"] == "good"
        assert row["more_than_best"]["value"] == pytest.approx(
            row["ensemble"]["value"] - row["members"]["good"]["value"]
        )
        assert row["without"]["good"]["loss"]["value"] > row["without"]["poor"]["loss"]["value"]
        assert row["ensemble"]["low"] <= row["ensemble"]["value"] <= row["ensemble"]["high"]


def test_what_cannot_be_left_out_is_not(scores):
    more = [each | {"one": one} for each, one in zip(scores, said(SHOWN, 5, one_class), strict=True)]
    found = what_members_are_worth({"good": FOUR, "one": ONE_CLASS}, SHOWN, more, RUNS, FEW)
    by_question = {row["question"]: row for row in found}
    assert set(by_question["covid19"]["members"]) == {"good"}
    assert set(by_question["abnormal"]["members"]) == {"good", "one"}
    assert set(by_question["abnormal"]["without"]) == {"one"}, "without the other nothing answers covid19"
    (row, *_) = what_members_are_worth({"good": FOUR}, SHOWN, scores, RUNS, FEW)
    assert row["without"] == {}
    assert row["more_than_best"]["value"] == 0


def test_a_question_that_some_folds_cannot_be_asked_is_left_out():
    shown = pictures((("cohen", "covid19", 60), ("cohen", "pneumonia", 60), ("nih", "pneumonia", 40)))
    runs = np.array([f"fold{(i + 2) % 5}" for i in range(len(shown))])
    # Enough normal images for three folds, but not for the two that hold them.
    shown += pictures((("nih", "normal", 21),))
    runs = np.concatenate([runs, np.array(["fold0"] * 5 + ["fold1"] * 16)])
    found = what_members_are_worth({"good": FOUR}, shown, together(good=said(shown, 6)), runs, FEW)
    assert {row["question"] for row in found} == {"covid19"}
