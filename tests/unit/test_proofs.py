"""What a storage commitment report does to the ledger, however late, however often."""

import pytest
from sqlalchemy import select, update

from dicom_node.commitment import CommitmentReport, FailureReason
from dicom_node.domain import DeliveryState
from dicom_node.ledger import Ledger
from dicom_node.outbox import Outbox
from dicom_node.proofs import MOST_SENDS, Proofs
from dicom_node.tables import CommitmentRow, DeliveryRow, DeliveryTryRow, ScreeningRow, db_now
from tests.ledger_factories import reported
from tests.result_factories import manifest

UIDS = ("2.25.1", "2.25.2")


@pytest.fixture
def outbox(database):
    Ledger(database).activate_release(manifest())
    return Outbox(database, retry_base_s=60, retry_max_s=60)


@pytest.fixture
def proofs(database):
    return Proofs(database, retry_base_s=60)


@pytest.fixture
def parcels(database, outbox):
    """Heatmap and report were sent."""
    reported(database)
    found = outbox.claim("deliverer", 9, 60)
    for parcel in found:
        outbox.sent(parcel, 0)
    return found


def state_of(database):
    with database.read() as session:
        return session.scalars(select(ScreeningRow.state)).one()


def failed(transaction, reason, *uids):
    return CommitmentReport(transaction, (), dict.fromkeys(uids, int(reason)))


def test_what_is_committed_is_proven_and_ends_the_screening(database, outbox, proofs, parcels):
    transaction = proofs.request(parcels, 60)
    assert not proofs.is_answered(transaction)
    assert proofs.answered(CommitmentReport(transaction, UIDS, {}))
    assert proofs.is_answered(transaction)
    assert outbox.counts() == {"pacs": {"committed": 2}}
    assert state_of(database) == "delivered"
    assert proofs.answered(CommitmentReport(transaction, UIDS, {}))
    assert outbox.counts() == {"pacs": {"committed": 2}}


def test_the_request_stands_in_the_ledger_and_the_objects_are_left_alone_meanwhile(database, outbox, proofs, parcels):
    transaction = proofs.request(parcels, 60)
    assert outbox.claim("other", 9, 60) == []
    with database.read() as session:
        row = session.scalars(select(CommitmentRow)).one()
        assert session.scalars(select(DeliveryRow.holder)).all() == [None, None]
    assert (row.transaction_uid, row.destination, row.answered_at) == (transaction, "pacs", None)


def test_each_attempt_has_a_transaction_of_its_own_and_the_report_on_an_older_one_counts(
    database, outbox, proofs, parcels
):
    first = proofs.request(parcels, 0)
    with database.write() as session:
        session.execute(update(DeliveryRow).values(not_before=db_now()))
    again = outbox.claim("deliverer", 9, 60)
    assert [parcel.proofs for parcel in again] == [1, 1]
    second = proofs.request(again, 60)
    assert first != second
    assert proofs.answered(CommitmentReport(first, UIDS, {}))
    assert outbox.counts() == {"pacs": {"committed": 2}}


def test_a_transaction_of_somebody_else_is_not_ours(proofs, parcels):
    proofs.request(parcels, 60)
    assert not proofs.answered(CommitmentReport("2.25.4711", UIDS, {}))


def test_what_the_peer_has_not_got_is_sent_again_and_rejected_in_the_end(database, outbox, proofs, parcels):
    for times in range(MOST_SENDS):
        transaction = proofs.request(parcels, 60)
        proofs.answered(failed(transaction, FailureReason.NO_SUCH_OBJECT_INSTANCE, UIDS[1]))
        proofs.answered(CommitmentReport(transaction, UIDS[:1], {}))
        if times == MOST_SENDS - 1:
            break
        assert outbox.counts() == {"pacs": {"committed": 1, "pending": 1}}
        assert outbox.claim("deliverer", 9, 60) == []  # not before its pause is over
        with database.write() as session:
            session.execute(update(DeliveryRow).values(not_before=db_now()))
        parcels = outbox.claim("deliverer", 9, 60)
        outbox.sent(parcels[0], 0)
    assert outbox.counts() == {"pacs": {"committed": 1, "rejected": 1}}
    assert state_of(database) == "failed"


@pytest.mark.parametrize("reason", [FailureReason.CLASS_INSTANCE_CONFLICT, FailureReason.SOP_CLASS_NOT_SUPPORTED])
def test_what_the_peer_will_never_commit_to_needs_a_person(database, outbox, proofs, parcels, reason):
    proofs.answered(failed(proofs.request(parcels, 60), reason, *UIDS))
    assert outbox.counts() == {"pacs": {"rejected": 2}}
    assert state_of(database) == "failed"
    with database.read() as session:
        told = session.scalars(select(DeliveryTryRow.detail).filter(DeliveryTryRow.detail.is_not(None))).all()
    assert told == [f"not committed: 0x{reason:04X}, {reason.name.lower().replace('_', ' ')}"] * 2


@pytest.mark.parametrize("reason", [FailureReason.RESOURCE_LIMITATION, FailureReason.PROCESSING_FAILURE, 0x4711])
def test_what_the_peer_cannot_say_now_is_asked_again(database, outbox, proofs, parcels, reason):
    proofs.answered(failed(proofs.request(parcels, 60), reason, *UIDS))
    assert outbox.counts() == {"pacs": {"sent": 2}}
    with database.write() as session:
        session.execute(update(DeliveryRow).values(not_before=db_now()))
    assert [parcel.state for parcel in outbox.claim("deliverer", 9, 60)] == [DeliveryState.SENT] * 2


def test_a_failure_that_comes_after_the_proof_changes_nothing(database, outbox, proofs, parcels):
    transaction = proofs.request(parcels, 60)
    proofs.answered(CommitmentReport(transaction, UIDS, {}))
    proofs.answered(failed(transaction, FailureReason.NO_SUCH_OBJECT_INSTANCE, *UIDS))
    assert outbox.counts() == {"pacs": {"committed": 2}}
    assert state_of(database) == "delivered"


def test_a_late_commitment_counts_more_than_a_query(outbox, proofs, parcels):
    transaction = proofs.request(parcels, 60)
    outbox.proven(parcels[0], DeliveryState.READ_BACK)
    outbox.proven(parcels[1], DeliveryState.UNPROVEN)
    proofs.answered(CommitmentReport(transaction, UIDS, {}))
    assert outbox.counts() == {"pacs": {"committed": 2}}
