"""A run held against labels: every figure equals an independent computation from the tables, by other means."""

from contextlib import closing

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve, roc_auc_score, roc_curve

from dicom_node.database import Database
from dicom_node.releases import Releases
from dicom_node.retrospective.report import validation
from dicom_node.retrospective.report.making import ReportError, Wanted, set_threshold
from tests.report_factories import BUNDLE, Cohort, film, invented, rows_of, told_by, write_labels

RESAMPLES = 2000


@pytest.fixture(scope="module")
def made(sqlite_template, tmp_path_factory):
    """The report of the invented run."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "ledger.sqlite").write_bytes(sqlite_template.read_bytes())
    with closing(Database(f"sqlite:///{folder / 'ledger.sqlite'}")) as database:
        yield invented(database, folder)


@pytest.fixture
def labelled(made):
    """Of the labelled studies with an answer, from the table: score, truth, whether flagged, patient."""
    rows = [row for row in rows_of(made) if row["label"] and row["covid_probability"]]
    return (
        np.array([float(row["covid_probability"]) for row in rows]),
        np.array([row["label"] == "1" for row in rows]),
        np.array([row["covid_decision"] == "flagged" for row in rows]),
        np.array([row["patient_id"] for row in rows]),
    )


def test_areas_are_those_of_scikit_learn_and_their_intervals_those_of_drawing_patients_one_by_one(made, labelled):
    scores, positive, _, patients = labelled
    figures = made.figures["validation"]
    assert figures["studies"] == len(scores) > 120
    assert figures["auc"]["value"] == pytest.approx(roc_auc_score(positive, scores))
    assert figures["average_precision"]["value"] == pytest.approx(average_precision_score(positive, scores))
    names = np.unique(patients)
    assert len(names) < len(scores)
    draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    areas, precisions = [], []
    for draw in draws:
        chosen = np.concatenate([np.flatnonzero(patients == names[one]) for one in draw])
        areas.append(roc_auc_score(positive[chosen], scores[chosen]))
        precisions.append(average_precision_score(positive[chosen], scores[chosen]))
    for found, values in ((figures["auc"], areas), (figures["average_precision"], precisions)):
        assert [found["low"], found["high"]] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())
        assert found["interval"] == "bootstrap over patients"
    assert figures["by_patient"]


def test_the_bands_of_the_curves_are_those_of_scikit_learn_s_curves_of_the_same_draws(made, labelled):
    scores, positive, _, patients = labelled
    names = np.unique(patients)
    at = np.linspace(0, 1, 101)
    sensitivities, precisions = [], []
    for draw in np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names))):
        chosen = np.concatenate([np.flatnonzero(patients == names[one]) for one in draw])
        rates, sensitivity, _ = roc_curve(positive[chosen], scores[chosen], drop_intermediate=False)
        sensitivities.append([sensitivity[rates <= one].max() for one in at])
        precision, recall, _ = precision_recall_curve(positive[chosen], scores[chosen])
        # from the highest threshold down: the first that reaches the recall
        precisions.append([precision[::-1][np.argmax(recall[::-1] >= one)] for one in at[1:]])
    figures = made.figures["validation"]
    for found, values in ((figures["roc_band"], sensitivities), (figures["precision_recall_band"], precisions)):
        low, high = np.percentile(values, [2.5, 97.5], axis=0)
        assert found["low"] == pytest.approx(low.tolist(), abs=1e-5)
        assert found["high"] == pytest.approx(high.tolist(), abs=1e-5)


def test_shares_at_the_threshold_that_counts_have_scipy_s_exact_and_wilson_intervals(made, labelled):
    _, positive, flagged, _ = labelled
    figures = made.figures["validation"]["current"]
    assert figures["threshold"] == 0.5
    for name, hits, of in (
        ("sensitivity", flagged & positive, positive),
        ("specificity", ~flagged & ~positive, ~positive),
        ("ppv", flagged & positive, flagged),
        ("npv", ~flagged & ~positive, ~flagged),
    ):
        found, test = figures[name], binomtest(int(hits.sum()), int(of.sum()))
        exact, wilson = test.proportion_ci(method="exact"), test.proportion_ci(method="wilson")
        assert found["value"] == pytest.approx(hits.sum() / of.sum())
        assert [found["low"], found["high"]] == pytest.approx(list(exact))
        assert found["wilson"] == pytest.approx(list(wilson))
    rows = [row for row in rows_of(made) if row["label"] and row["covid_decision"] == "indeterminate"]
    labels = [row["label"] for row in rows]
    assert figures["indeterminate"] == [labels.count("1"), labels.count("0")]
    assert sum(figures["indeterminate"]) > 0


def test_the_threshold_for_a_sensitivity_is_the_most_specific_of_all_that_reach_it(made, labelled):
    scores, positive, _, _ = labelled
    aimed = made.figures["validation"]["aimed"]
    tried = [*np.unique(scores), 2.0]
    reaching = [one for one in tried if (scores[positive] >= one).mean() >= 0.9]
    best = max((scores[~positive] < one).mean() for one in reaching)
    above = scores >= aimed["threshold"]
    assert above[positive].mean() >= 0.9
    assert aimed["sensitivity"]["value"] == pytest.approx(above[positive].mean())
    assert aimed["specificity"]["value"] == pytest.approx((~above)[~positive].mean())
    assert aimed["specificity"]["value"] == pytest.approx(best)
    assert made.figures["validation"]["aimed_decided"]["sensitivity"]["hits"] <= aimed["sensitivity"]["hits"]


def test_at_the_threshold_that_counts_what_would_be_decided_is_what_was(made):
    for one in made.gathered.labelled:
        assert validation.decision_at(0.5, one.images) == one.decision


def test_calibration_is_that_of_scikit_learn_and_of_ten_bins_counted_out(made, labelled):
    scores, positive, _, _ = labelled
    found = made.figures["validation"]["calibration"]
    assert found["brier"] == pytest.approx(brier_score_loss(positive, scores))
    bins = np.minimum((scores * 10).astype(int), 9)
    gaps = [abs(scores[bins == one].mean() - positive[bins == one].mean()) * (bins == one).mean() for one in set(bins)]
    assert found["ece"] == pytest.approx(sum(gaps))
    share, forecast = calibration_curve(positive, scores, n_bins=10)
    assert found["reliability"]["x"] == pytest.approx(forecast.tolist(), abs=1e-5)
    assert found["reliability"]["y"] == pytest.approx(share.tolist(), abs=1e-5)


def test_subgroups_are_measured_where_they_are_large_enough_and_counted_elsewhere(made, labelled):
    rows = [row for row in rows_of(made) if row["label"] and row["covid_probability"]]
    groups = {(one["name"], one["group"]): one for one in made.figures["validation"]["subgroups"]}
    assert {name for name, _ in groups} == {"sex", "age", "view", "scanner"}
    measured = 0
    for (name, group), found in groups.items():
        here = [row for row in rows if group == (validation.age_group(int(row["age"])) if name == "age" else row[name])]
        truth = [row["label"] == "1" for row in here]
        assert (found["studies"], found["positive"]) == (len(here), sum(truth))
        if min(sum(truth), len(truth) - sum(truth)) < 10:
            assert found["auc"] is found["sensitivity"] is found["specificity"] is None
            continue
        measured += 1
        scores = [float(row["covid_probability"]) for row in here]
        assert found["auc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
        hits = [row["covid_decision"] == "flagged" for row, one in zip(here, truth, strict=True) if one]
        assert found["sensitivity"]["value"] == pytest.approx(np.mean(hits))
    assert 4 < measured < len(groups)
    assert sum(one["studies"] for (name, _), one in groups.items() if name == "scanner") == len(rows)


@pytest.mark.parametrize(
    ("age", "group"), [(0, "0-17"), (17, "0-17"), (18, "18-39"), (64, "40-64"), (65, "65+"), (None, "not stated")]
)
def test_ages_are_grouped(age, group):
    assert validation.age_group(age) == group


def test_the_members_agreement_is_that_of_the_table_of_outputs(made):
    found = made.figures["members"]
    (flat,) = made.gathered.members.values()
    values = np.asarray(flat).reshape(-1, 3)
    assert found["correlation"][0][1] == pytest.approx(spearmanr(values[:, 0], values[:, 1]).statistic)
    assert found["images"] == made.figures["counts"]["images_screened"]


def test_scores_by_scanner_are_those_of_the_table(made):
    rows = [row for row in rows_of(made) if row["covid_probability"]]
    for found in made.figures["scores"]["scanner"]:
        scores = [float(row["covid_probability"]) for row in rows if row["scanner"] == found["group"]]
        assert found["studies"] == len(scores)
        assert found["percentiles"] == pytest.approx(np.percentile(scores, [5, 25, 50, 75, 95]).tolist(), abs=1e-6)


def test_a_threshold_of_the_site_is_set_for_the_release_that_answered(database, tmp_path):
    made = invented(database, tmp_path)
    site = set_threshold(database, made, "Dr. Night")
    found = Releases(database).thresholds(BUNDLE)["covid"]
    assert found == site
    assert found.threshold == made.validation.aimed.threshold
    assert found.set_by == "Dr. Night"
    aimed, decided = made.validation.aimed.sensitivity, made.validation.aimed_decided.sensitivity
    positive = made.validation.positive
    assert found.basis.startswith(
        f"run march: 150 studies, {positive} positive; "
        f"sensitivity {aimed['value']:.3f} [{aimed['low']:.3f}, {aimed['high']:.3f}]"
    )
    assert f"indeterminate counted as missed, sensitivity {decided['value']:.3f}" in found.basis


def test_no_threshold_is_set_by_few_positives_or_where_several_releases_answered(database, tmp_path):
    cohort = Cohort(database)
    truth = {cohort.study(film(1.0 - number / 10)): number < 19 for number in range(40)}
    labels = write_labels(tmp_path / "labels.csv", truth)
    made = told_by(database, tmp_path, Wanted("march", labels))
    with pytest.raises(ReportError, match="19 labelled studies with an answer are positive: a threshold needs 20"):
        set_threshold(database, made, "Dr. Night")
    cohort.use(BUNDLE.model_copy(update={"release": "2024.2"}))
    cohort.study(film(1.0))
    made = told_by(database, tmp_path, Wanted("march", labels))
    with pytest.raises(ReportError, match=r"several releases answered in run march \(starter 2024.1, starter 2024.2\)"):
        set_threshold(database, made, "Dr. Night")
    with pytest.raises(ReportError, match="without labels"):
        set_threshold(database, told_by(database, tmp_path, Wanted("march")), "Dr. Night")
    assert Releases(database).thresholds(BUNDLE) == {}


def test_both_databases_give_the_same_figures(database, tmp_path, made):
    assert invented(database, tmp_path).figures == made.figures
