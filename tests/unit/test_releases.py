import subprocess
import sys

import pytest
from sqlalchemy import func, select, update

from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.domain import State
from dicom_node.ledger import Ledger
from dicom_node.releases import ReleaseError, Releases, ThresholdError
from dicom_node.tables import ReleaseRow, ScreeningRow, ThresholdRow
from tests.ledger_factories import prediction, received
from tests.result_factories import manifest, member, target


@pytest.fixture
def releases(database):
    found = Releases(database)
    found.activate(manifest())
    return found


@pytest.fixture
def claims(database):
    return Claims(database)


def release(number, **changed):
    return manifest(release=number, **changed)


def set_one(releases, threshold=0.3, given=None, name="covid", **changed):
    told = {"set_by": "Dr. Muster", "basis": "1,000 films of 2025"} | changed
    return releases.set_threshold(given or manifest(), name, threshold, **told)


def test_a_new_ledger_has_no_active_release_and_asking_makes_no_file(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'nowhere' / 'ledger.sqlite'}")
    assert Releases(database).has_active() is False
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_the_version_before_says_that_it_has_a_release(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.upgrade("0002")
    assert Releases(database).has_active() is False
    with database.write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO releases VALUES (1, 'starter', '1', '{}', 1, '2026-01-02 03:04:05')"
        )
    assert Releases(database).has_active() is True
    database.close()


def test_the_newest_version_of_a_threshold_counts_and_the_older_ones_stay(releases, database):
    first, second = set_one(releases, 0.3), set_one(releases, 0.4, set_by="Dr. Next", basis="2,000 films")
    assert (first.version, second.version) == (1, 2)
    assert second.set_at.tzinfo is not None
    assert releases.thresholds(manifest()) == {"covid": second}
    with database.read() as session:
        assert session.scalars(select(ThresholdRow.threshold).order_by(ThresholdRow.version)).all() == [0.3, 0.4]


def test_versions_count_within_release_and_target(releases):
    two = release("2", targets=(target("covid"), target("pneumonia")))
    set_one(releases)
    assert set_one(releases, given=two).version == 1
    assert set_one(releases, given=two, name="pneumonia").version == 1
    assert set_one(releases, given=two).version == 2
    assert set(releases.thresholds(two)) == {"covid", "pneumonia"}


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_probability_is_refused(releases, threshold):
    with pytest.raises(ThresholdError, match="covid: it is a probability"):
        set_one(releases, threshold)


def test_the_ends_of_the_range_are_thresholds(releases):
    assert [set_one(releases, end).threshold for end in (0.0, 1.0)] == [0.0, 1.0]


def test_an_unknown_target_is_refused_and_the_known_ones_are_named(releases):
    with pytest.raises(ThresholdError, match=r"starter 2024\.1 has no target 'tb'; its targets: covid"):
        set_one(releases, name="tb")


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"set_by": " "}, "--by names who"), ({"set_by": "x" * 65}, "1 to 64"), ({"basis": "\0"}, "--basis says")],
)
def test_a_threshold_that_nobody_stands_for_is_refused(releases, changed, told):
    with pytest.raises(ThresholdError, match=told):
        set_one(releases, **changed)


def test_a_threshold_for_a_bundle_that_was_changed_is_refused(releases):
    with pytest.raises(ReleaseError, match="needs a new release"):
        set_one(releases, given=manifest(title="changed"))
    assert releases.thresholds(manifest(title="changed")) == {}


def test_a_threshold_makes_a_release_known_and_not_active(releases, database):
    set_one(releases, given=release("2"))
    with database.read() as session:
        found = set(session.execute(select(ReleaseRow.release, ReleaseRow.active)).tuples())
    assert found == {("2024.1", True), ("2", False)}


def test_a_release_without_a_threshold_that_the_active_one_has_may_not_go_live(releases, database):
    set_one(releases)
    with pytest.raises(
        ReleaseError,
        match=r"starter 2024\.1 flags covid from a threshold that the site has set, and starter 2 has none for covid: "
        r"set it with `dicom-node bundle threshold covid VALUE --by WHO --basis TEXT starter@2`",
    ):
        releases.activate(release("2"))
    assert releases.active() == manifest()
    with database.read() as session:
        assert session.scalar(select(func.count(ReleaseRow.id))) == 1  # nothing of the refused one stays
    set_one(releases, 0.2, given=release("2"))
    releases.activate(release("2"))
    assert releases.active() == release("2")


def test_a_release_without_a_target_that_the_site_has_set_may_not_go_live(releases):
    set_one(releases)
    other = release("2", targets=(target("pneumonia"),))
    with pytest.raises(ReleaseError, match="and starter 2 has no target covid: use a release that has it"):
        releases.activate(other)


def test_a_release_that_was_left_has_its_own_thresholds_still_when_it_comes_back(releases):
    set_one(releases, 0.3)
    set_one(releases, 0.2, given=release("2"))
    releases.activate(release("2"))
    releases.activate(manifest())
    assert releases.thresholds(manifest())["covid"].threshold == 0.3


def test_without_thresholds_of_the_site_any_release_may_follow(releases):
    releases.activate(release("2", targets=(target("pneumonia"),)))
    assert releases.active().targets[0].name == "pneumonia"


def test_a_claim_carries_the_newest_thresholds_of_its_release(releases, database, claims):
    ledger = Ledger(database)
    for number in range(3):
        ledger.record(received(number))
    assert claims.claim("worker", 20).thresholds == {}
    set_one(releases, 0.3)
    set_one(releases, 0.4)
    set_one(releases, 0.9, given=release("2"))
    assert [claim.thresholds for claim in claims.claim_batch("worker", 20, 2)] == [{"covid": 0.4}] * 2


def test_each_claim_of_a_batch_has_the_thresholds_of_its_own_release(releases, database, claims):
    ledger = Ledger(database)
    for number in range(2):
        ledger.record(received(number))
    begun = claims.claim("worker", 20)
    claims.save_prediction(begun, prediction(begun.manifest), None)
    claims.give_back(begun, "", pause_s=0)
    set_one(releases, 0.3)
    set_one(releases, 0.7, given=release("2"))
    releases.activate(release("2"))
    found = {claim.manifest.release: claim for claim in claims.claim_batch("worker", 20, 2)}
    assert {name: claim.thresholds for name, claim in found.items()} == {"2024.1": {"covid": 0.3}, "2": {"covid": 0.7}}
    # what an older release predicted is still told by its own manifest
    assert found["2024.1"].state is State.PREDICTED
    assert claims.load_prediction(found["2024.1"]).prediction.release == "2024.1"


def test_a_given_back_screening_takes_the_thresholds_of_the_release_that_is_active_by_then(releases, database, claims):
    Ledger(database).record(received())
    claims.give_back(claims.claim("worker", 20), "", pause_s=0)
    set_one(releases, 0.7, given=release("2"))
    with database.write() as session:  # as if the activation had passed while it was claimed
        session.execute(update(ReleaseRow).values(active=False))
        session.execute(update(ReleaseRow).where(ReleaseRow.release == "2").values(active=True))
        assert session.scalar(select(func.count(ScreeningRow.id))) == 1
    claim = claims.claim("worker", 20)
    assert (claim.manifest.release, claim.thresholds) == ("2", {"covid": 0.7})


def test_two_processes_that_set_thresholds_at_once_get_different_versions(releases, database):
    code = (
        "import sys\n"
        "from dicom_node.database import Database\n"
        "from dicom_node.releases import Releases\n"
        "releases = Releases(Database(sys.argv[1])); manifest = releases.active()\n"
        "print('ready', flush=True); input()\n"
        "for _ in range(10):\n"
        "    print(releases.set_threshold(manifest, 'covid', 0.5, set_by='x', basis='y').version)"
    )
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", code, database.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for caller in callers:
        assert caller.stdout.readline() == "ready\n"
    for caller in callers:
        caller.stdin.write("\n")
        caller.stdin.flush()
    versions = [int(line) for caller in callers for line in caller.communicate(timeout=60)[0].split()]
    assert sorted(versions) == list(range(1, 21))


def test_a_manifest_that_leaves_out_what_newer_ones_say_is_the_same_when_it_comes_back(database):
    """The ledger compares manifests as text, and workers as data: both must hold over a round trip."""
    releases = Releases(database)
    plain = manifest(members=(member("zhang", options={}), member("basu")))
    releases.activate(plain)
    assert releases.active() == plain
    releases.activate(releases.active())
    set_one(releases, given=releases.active())
