"""Studies of runs: claimed within budgets, expected and looked for, answered for, given back."""

from datetime import timedelta

import pytest

from dicom_node.domain import LostLeaseError, Origin, RunState, State
from dicom_node.retrospective.studies import ALREADY_SCREENED
from tests.cohort_factories import NOW, Night
from tests.ledger_factories import LATERAL
from tests.result_factories import manifest


@pytest.fixture
def night(database, tmp_path):
    return Night(tmp_path, database)


def fetched(night, number, images=1, **options):
    """The next study is fetched by C-MOVE, as far as it is not there."""
    claim, missing = night.begin(images)
    for uid in missing:
        night.arrive(uid, origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    return claim, missing


def test_studies_are_claimed_in_their_order_and_each_once(night):
    night.run(3, 1, 2)
    night.settings = night.settings.model_copy(update={"retrievals": 9})
    claimed = [night.claim() for _ in range(4)]
    assert [one and one.study_instance_uid for one in claimed] == ["1.3.3", "1.3.1", "1.3.2", None]


@pytest.mark.parametrize("state", [RunState.PLANNED, RunState.PAUSED, RunState.PLANNING, RunState.ENDED])
def test_nothing_is_claimed_of_a_run_that_does_not_run(night, state):
    night.run(1, state=state)
    assert night.claim() is None


def test_nothing_is_claimed_of_a_run_that_rests(night):
    night.run(1, rests_because="outside the window")
    assert night.claim() is None


def test_no_more_are_fetched_at_a_time_than_is_set(night):
    night.run(1, 2, 3)
    first, second = night.claim(), night.claim()
    assert night.claim() is None
    night.studies.give_back(first)
    assert night.claim().study_instance_uid == "1.3.1"
    assert second.study_instance_uid == "1.3.2"


def test_no_more_are_begun_in_a_minute_than_is_set(database, tmp_path):
    night = Night(tmp_path, database, studies_per_minute=2)
    night.run(*range(1, 9))
    begun = []
    for second in range(0, 180, 5):
        if claim := night.claim(now=NOW + timedelta(seconds=second)):
            begun.append(second)
            night.studies.retrieved(claim, 1.0)
    assert begun == [0, 5, 60, 65, 120, 125]


def test_a_study_is_never_fetched_for_two_runs_at_a_time(night):
    night.run(1, name="first")
    night.run(1, 2, name="second")
    first, second = night.claim(), night.claim()
    assert (first.run_id, first.study_instance_uid) == (1, "1.3.1")
    assert (second.run_id, second.study_instance_uid) == (2, "1.3.2")


def test_a_lease_that_runs_out_gives_the_study_back_and_its_holder_can_write_no_more(night):
    night.run(1)
    lost = night.claim(lease_s=-1)
    again = night.claim("another")
    assert again.study_instance_uid == "1.3.1"
    for write in (
        lambda: night.studies.renew(lost, 60),
        lambda: night.studies.expect(lost, []),
        lambda: night.studies.retrieved(lost, 1.0),
        lambda: night.studies.on_way(lost, "move"),
    ):
        with pytest.raises(LostLeaseError):
            write()
    night.studies.give_back(lost)  # nothing, and no error
    assert night.study(1).holder == "another"


def test_what_was_looked_for_and_is_gone_from_the_pacs_is_not_waited_for(night):
    night.run(1)
    claim, missing = night.begin(images=3)
    night.arrive(missing[0], origin=Origin.MOVED)
    night.studies.not_retrieved(claim, "missing_images", "1 of 3 came", now=NOW, pause_s=0, attempts=3)
    _, missing = night.begin(images=2)
    assert missing == ["1.2.1.2"]
    assert sorted(night.expected(1)) == ["1.2.1.1", "1.2.1.2"]


def test_a_study_that_does_not_come_is_tried_again_after_a_pause_that_doubles_and_then_fails(night):
    night.run(1)
    now = NOW
    for pause_s in (10, 20):
        claim = night.claim(now=now)
        night.studies.not_retrieved(claim, "missing_images", "none came", now=now, pause_s=10, attempts=3)
        assert night.study(1).state == "found"
        assert night.claim(now=now + timedelta(seconds=pause_s - 1)) is None
        now += timedelta(seconds=pause_s)
    night.studies.not_retrieved(night.claim(now=now), "missing_images", "none came", now=now, pause_s=10, attempts=3)
    study = night.study(1)
    assert (study.state, study.reason, study.detail) == ("failed", "missing_images", "none came")


def test_a_fault_of_the_peer_does_not_count(night):
    night.run(1)
    for _ in range(5):
        night.studies.give_back(night.claim(), "pacs does not answer")
    assert night.study(1).attempts == 0
    assert night.study(1).detail == "pacs does not answer"


def test_what_had_landed_of_a_study_that_failed_is_screened_all_the_same(night):
    night.run(1)
    claim, missing = night.begin(images=2)
    night.arrive(missing[0], origin=Origin.MOVED)
    night.studies.not_retrieved(claim, "missing_images", "1 of 2 came", now=NOW, pause_s=0, attempts=1)
    assert night.screen() is not None
    night.settle()
    assert night.study(1).state == "failed"
    assert night.study(1).held_bytes == 0
    assert night.instance(missing[0]).path is None


def test_a_study_that_this_release_has_screened_is_not_fetched(night):
    night.arrive("1.2.1.1")
    night.screen()
    night.run(1)
    claim = night.claim()
    night.studies.give_back(claim)
    claim, missing = night.begin()
    assert missing == []


def test_what_was_screened_live_answers_for_the_run(night):
    night.arrive("1.2.1.1")
    live = night.screen()
    night.run(1)
    claim = night.claim()
    night.studies.expect(claim, [_told("1.2.1.1")])
    assert night.studies.look(claim) == []
    night.studies.retrieved(claim, 0.0)
    assert night.study(1).reason == ALREADY_SCREENED
    assert night.expected(1)["1.2.1.1"].screening_id == live.screening_id


def _told(uid):
    from types import SimpleNamespace

    return SimpleNamespace(sop_instance_uid=uid, series_instance_uid="1.4", sop_class_uid=None)


def test_what_its_header_ruled_out_is_not_fetched_again(night):
    night.arrive("1.2.1.1", admission=LATERAL)
    night.run(1)
    _, missing = night.begin()
    assert missing == []


def test_what_another_release_has_screened_live_is_screened_beside_it(night):
    night.arrive("1.2.1.1")
    night.screen()
    night.ledger.activate_release(manifest(release="2.0.0"))
    night.run(1)
    _, missing = fetched(night, 1)
    assert missing == []  # its bytes are there
    shadow = night.screen()
    assert (shadow.purpose, shadow.delivers) == ("shadow", False)
    assert night.expected(1)["1.2.1.1"].screening_id == shadow.screening_id
    night.settle()
    assert night.study(1).state == "done"
    assert night.screening("1.2.1.1").state == "reported"  # the live one stands
    assert night.instance("1.2.1.1").path is not None


def test_what_another_release_has_screened_for_a_run_is_fetched_again_and_replaced(night):
    night.run(1)
    fetched(night, 1)
    first = night.screen()
    night.settle()
    night.ledger.activate_release(manifest(release="2.0.0"))
    night.run(1, name="april")
    _, missing = fetched(night, 1)
    assert missing == ["1.2.1.1"]
    second = night.screen()
    assert night.screening("1.2.1.1").id == second.screening_id != first.screening_id
    assert night.expected(1, run_id=2)["1.2.1.1"].screening_id == second.screening_id


def test_a_run_that_screens_again_does_so(night):
    night.arrive("1.2.1.1")
    live = night.screen()
    night.run(1, again=True)
    fetched(night, 1)
    again = night.screen()
    assert again.screening_id != live.screening_id
    assert again.purpose == "shadow"


def test_a_run_that_delivers_has_what_was_withheld_screened_for_the_destinations(night):
    night.run(1)
    fetched(night, 1)
    night.screen()
    night.settle()
    night.run(1, name="loud", deliver=True)
    _, missing = fetched(night, 1)
    assert missing == ["1.2.1.1"]
    loud = night.screen()
    assert loud.delivers
    assert night.screening("1.2.1.1").state == State.REPORTED


def test_two_runs_over_one_study_share_what_is_under_way(night):
    night.run(1, name="first")
    night.run(1, name="second")
    fetched(night, 1)
    claim, missing = night.begin()
    assert missing == []
    night.studies.retrieved(claim, 0.0)
    assert night.expected(1, 1)["1.2.1.1"].screening_id == night.expected(1, 2)["1.2.1.1"].screening_id
    assert night.screen() is not None
    assert night.screen() is None
    night.settle()
    assert [night.study(1, run).state for run in (1, 2)] == ["done", "done"]


def test_what_another_run_purges_before_it_is_arranged_for_is_fetched_again(night):
    night.run(1, name="first")
    night.run(1, name="again", again=True)
    fetched(night, 1)
    night.screen()
    claim, missing = night.begin()
    assert missing == []  # its bytes are there
    night.settle()  # and are gone
    night.studies.retrieved(claim, 0.0)
    assert (night.study(1, run_id=2).state, night.study(1, run_id=2).attempts) == ("found", 0)
    _, missing = fetched(night, 1)
    assert missing == ["1.2.1.1"]
    assert night.screen().purpose == "retrospective"


def test_at_the_start_of_a_node_that_is_alone_everything_is_given_back(night):
    night.run(1)
    night.claim()
    assert night.studies.recover() == 1
    assert night.study(1).state == "found"
