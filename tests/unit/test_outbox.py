"""What deliveries do to the ledger, on both databases."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, select, update

from dicom_node.database import Database
from dicom_node.domain import DeliveryError, DeliveryState, LostLeaseError, State, invariant_holds
from dicom_node.ledger import Ledger
from dicom_node.outbox import Outbox
from dicom_node.tables import DeliveryRow, DeliveryTryRow, ScreeningRow, TransitionRow, db_now
from tests.ledger_factories import drawn, reported, told
from tests.result_factories import manifest


@pytest.fixture
def outbox(database):
    Ledger(database).activate_release(manifest())
    return Outbox(database, retry_base_s=60, retry_max_s=60)


def stored(outbox, parcel):
    """The destination took the object and found it when it was asked."""
    outbox.sent(parcel, 0x0000)
    outbox.proven(parcel, DeliveryState.READ_BACK)


def at_once(count, work):
    """`work(index)` from so many threads that begin together; their results."""
    together = threading.Barrier(count)

    def run(index):
        together.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def state_of(database):
    with database.read() as session:
        return session.scalars(select(ScreeningRow.state)).one()


def test_without_a_destination_results_are_withheld(database, outbox):
    reported(database, destinations=())
    assert state_of(database) == State.WITHHELD


def test_it_is_delivered_when_every_object_stands_at_every_destination(database, outbox):
    reported(database, destinations=("pacs", "archive"))
    for expected in ("pacs", "archive"):
        assert state_of(database) == State.REPORTED
        parcels = outbox.claim("deliverer", 10, 60)
        assert {parcel.destination for parcel in parcels} == {expected}
        assert len(parcels) == 2
        for parcel in parcels:
            stored(outbox, parcel)
    assert state_of(database) == State.DELIVERED


def test_the_heatmap_leaves_before_the_report_that_cites_it(database, outbox):
    reported(database)
    assert [parcel.sop_instance_uid for parcel in outbox.claim("deliverer", 10, 60)] == ["2.25.1", "2.25.2"]


def test_a_leased_parcel_is_not_claimed_twice(database, outbox):
    reported(database)
    assert len(outbox.claim("deliverer", 10, 60)) == 2
    assert outbox.claim("deliverer", 10, 60) == []


def test_a_passing_failure_is_tried_again_after_a_pause(database, outbox):
    reported(database)
    for parcel in outbox.claim("deliverer", 10, 60):
        outbox.not_sent(parcel, DeliveryError("down", permanent=False))
    assert outbox.claim("deliverer", 10, 60) == []
    with database.write() as session:
        session.execute(update(DeliveryRow).values(not_before=db_now()))
    again = outbox.claim("deliverer", 10, 60)
    assert [parcel.tries for parcel in again] == [1, 1]
    assert state_of(database) == State.REPORTED


def test_a_rejection_stops_and_shows(database, outbox):
    reported(database)
    for parcel in outbox.claim("deliverer", 10, 60):
        outbox.not_sent(parcel, DeliveryError("unknown AE", permanent=True, status=0x0124))
    assert outbox.claim("deliverer", 10, 60) == []
    with database.read() as session:
        row = session.scalars(select(ScreeningRow)).one()
        tries = session.scalars(select(DeliveryTryRow)).all()
    assert (row.state, row.reason) == ("failed", "delivery_rejected")
    assert [entry.status for entry in tries] == [0x0124, 0x0124]
    assert outbox.counts() == {"pacs": {"rejected": 2}}
    assert invariant_holds(Ledger(database).counts())


def test_a_dead_destination_does_not_hold_up_a_healthy_one(database, outbox):
    reported(database, destinations=("dead", "healthy"))
    for parcel in outbox.claim("deliverer", 10, 60):
        assert parcel.destination == "dead"
        outbox.not_sent(parcel, DeliveryError("down", permanent=False))
    outbox.postpone("dead")
    assert {parcel.destination for parcel in outbox.claim("deliverer", 10, 60)} == {"healthy"}


def test_what_a_dead_deliverer_held_is_due_again(database, outbox):
    reported(database)
    assert len(outbox.claim("dead", 10, 3600)) == 2
    outbox.recover()
    assert len(outbox.claim("deliverer", 10, 3600)) == 2


def test_what_a_dead_deliverer_held_goes_on_when_its_lease_ran_out(database, outbox):
    reported(database)
    assert len(outbox.claim("dead", 10, 0.1)) == 2
    assert outbox.claim("deliverer", 10, 20) == []
    time.sleep(0.15)
    assert len(outbox.claim("deliverer", 10, 20)) == 2


def test_one_process_at_a_time_has_a_destination_and_its_order_is_kept(database, outbox):
    for number in range(3):
        reported(database, destinations=("pacs", "archive"), number=number)
    pacs, archive = outbox.claim("first", 3, 20), outbox.claim("second", 3, 20)
    assert {parcel.destination for parcel in pacs} == {"pacs"}
    assert {parcel.destination for parcel in archive} == {"archive"}
    assert outbox.claim("third", 3, 20) == []
    for parcel in pacs:
        stored(outbox, parcel)
    later = outbox.claim("third", 3, 20)
    assert [parcel.sop_instance_uid for parcel in pacs + later] == [
        f"2.25.{number}{kind}" for number in range(3) for kind in (1, 2)
    ]


def test_deliverers_that_claim_together_never_have_the_same_destination(database, outbox):
    for number in range(8):
        reported(database, destinations=("a", "b", "c"), number=number)
    claimed = at_once(8, lambda index: outbox.claim(f"deliverer{index}", 4, 20))
    while (more := outbox.claim("another", 4, 20)) != []:
        claimed.append(more)
    held = [parcels[0].destination for parcels in claimed if parcels]
    assert sorted(held) == ["a", "b", "c"]


def test_one_who_lost_its_lease_changes_nothing_of_anothers(database, outbox):
    reported(database)
    late = outbox.claim("late", 10, 0.001)
    time.sleep(0.05)
    current = outbox.claim("current", 10, 20)
    with database.read() as session:
        before = session.execute(select(*DeliveryRow.__table__.c).order_by(DeliveryRow.id)).all()
    with pytest.raises(LostLeaseError):
        outbox.renew(late, 3600)
    outbox.not_sent(late[0], DeliveryError("down", permanent=False))
    outbox.not_sent(late[1], DeliveryError("refused", permanent=True, status=0xC000))
    outbox.postpone("pacs")
    with database.read() as session:
        assert session.execute(select(*DeliveryRow.__table__.c).order_by(DeliveryRow.id)).all() == before
        assert session.scalars(select(DeliveryTryRow)).all() == []
    assert state_of(database) == State.REPORTED
    for parcel in current:
        stored(outbox, parcel)
    assert state_of(database) == State.DELIVERED


def test_what_was_sent_is_sent_whoever_says_so_and_counts_once(database, outbox):
    reported(database)
    late = outbox.claim("late", 10, 0.001)
    time.sleep(0.05)
    current = outbox.claim("current", 10, 20)
    for parcel in late:
        stored(outbox, parcel)
    assert state_of(database) == State.DELIVERED
    stored(outbox, current[0])
    outbox.not_sent(current[1], DeliveryError("refused", permanent=True, status=0xC000))
    assert outbox.counts() == {"pacs": {"read_back": 2}}
    with database.read() as session:
        assert session.scalars(select(TransitionRow.to_state)).all().count("delivered") == 1


def test_the_last_two_objects_of_a_screening_sent_at_once_deliver_it_once(database, outbox):
    for number in range(20):
        reported(database, destinations=("pacs", "archive"), number=number)
    parcels = [outbox.claim(f"deliverer{index}", 1000, 20) for index in range(2)]
    for pair in zip(*parcels, strict=True):
        at_once(2, lambda index, pair=pair: stored(outbox, pair[index]))
    with database.read() as session:
        assert set(session.scalars(select(ScreeningRow.state))) == {"delivered"}
        assert session.scalars(select(TransitionRow.to_state)).all().count("delivered") == 20


def test_what_was_sent_is_not_delivered_before_it_is_known_whether_that_can_be_proven(database, outbox):
    reported(database)
    heatmap, report = outbox.claim("deliverer", 10, 60)
    for parcel in (heatmap, report):
        outbox.sent(parcel, 0x0000)
    assert state_of(database) == State.REPORTED
    outbox.proven(heatmap, DeliveryState.COMMITTED)
    assert state_of(database) == State.REPORTED
    outbox.proven(report, DeliveryState.UNPROVEN, "no way to ask")
    assert state_of(database) == State.DELIVERED
    assert outbox.counts() == {"pacs": {"committed": 1, "unproven": 1}}
    assert outbox.last_errors() == {"pacs": "no way to ask"}


def test_what_is_to_be_proven_is_claimed_again_when_its_pause_is_over(database, outbox):
    reported(database)
    heatmap, report = outbox.claim("first", 10, 60)
    outbox.sent(heatmap, 0x0000)
    outbox.ask_again(heatmap, "not found")
    assert outbox.claim("second", 10, 60) == []
    outbox.give_back([report])
    with database.write() as session:
        session.execute(update(DeliveryRow).values(not_before=db_now()))
    again = outbox.claim("second", 10, 60)
    assert [(parcel.state, parcel.proofs, parcel.tries) for parcel in again] == [("sent", 1, 1), ("pending", 0, 0)]
    assert again[0].study_instance_uid == again[1].study_instance_uid == "1.3.9"


def test_a_heatmap_that_arrived_before_its_report_was_made_ends_with_it(database, outbox):
    drawn(database)
    (heatmap,) = outbox.claim("deliverer", 10, 60)
    stored(outbox, heatmap)
    assert state_of(database) == State.REPORTED
    told(database, "2.25.2", destinations=())
    assert state_of(database) == State.DELIVERED


def test_what_was_rejected_is_sent_again_when_a_person_says_so(database, outbox):
    reported(database)
    for parcel in outbox.claim("deliverer", 10, 60):
        outbox.not_sent(parcel, DeliveryError("unknown AE", permanent=True, status=0x0124))
    assert outbox.send_again(destination="elsewhere") == 0
    assert outbox.send_again() == 2
    assert state_of(database) == State.REPORTED
    for parcel in outbox.claim("deliverer", 10, 60):
        stored(outbox, parcel)
    assert state_of(database) == State.DELIVERED
    assert outbox.send_again() == 0
    assert outbox.send_again(study_instance_uid="1.3.9") == 2
    assert outbox.counts() == {"pacs": {"pending": 2}}
    assert state_of(database) == State.DELIVERED


def test_a_peer_that_is_out_of_reach_is_not_asked_for_each_object_nor_is_that_counted(database, outbox):
    for number in range(3):
        reported(database, number=number)
    sent = outbox.claim("deliverer", 10, 60)
    for parcel in sent:
        outbox.sent(parcel, 0)
    outbox.give_back(sent)
    tried = outbox.claim("deliverer", 2, 60)
    for parcel in tried:
        outbox.ask_again(parcel, "down", reached=False)
    outbox.postpone("pacs", tried)
    assert outbox.claim("deliverer", 10, 60) == []
    with database.read() as session:
        assert set(session.scalars(select(DeliveryRow.proofs))) == {0}


def test_a_destination_at_rest_is_left_alone_but_for_what_is_on_its_way(database, outbox):
    reported(database, destinations=("pacs", "archive"))
    (held,) = outbox.claim("deliverer", 1, 60)
    outbox.rest("pacs")
    assert {parcel.destination for parcel in outbox.claim("another", 10, 60)} == {"archive"}
    outbox.give_back([held])
    assert outbox.claim("deliverer", 10, 60) == [held]


def test_a_long_queue_is_read_by_its_index(sqlite_template, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    Ledger(database).activate_release(manifest())
    reported(database)
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _u, sql, values, *_: asked.append((sql, values)))
    assert len(Outbox(database, retry_base_s=1, retry_max_s=1).claim("deliverer", 10, 60)) == 2
    with database.engine.connect() as connection:
        plans = {
            sql: [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
            for sql, values in asked
            if sql.startswith("SELECT")
        }
    assert not [step for plan in plans.values() for step in plan if step.startswith("SCAN")]
    polled = [plan for sql, plan in plans.items() if sql.startswith("SELECT deliveries.not_before")]
    assert polled
    assert not [step for plan in polled for step in plan if "ORDER BY" in step]
    database.close()
