"""The worker's way with its claims, above all where something fails; the network is a fake that can be made to fail."""

import time
from concurrent.futures import Future, wait
from contextlib import contextmanager

import numpy as np
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from dicom_node.archive import Archive
from dicom_node.claims import Claims
from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.decoding import decoders
from dicom_node.demo.instances import phantom_dataset
from dicom_node.domain import (
    BundleError,
    Decision,
    DeclinedByPixelsError,
    DeclineReason,
    DecoderError,
    MemberMap,
    Prediction,
    TargetResult,
)
from dicom_node.ledger import Ledger
from dicom_node.pixels import render
from dicom_node.releases import Releases
from dicom_node.resize import square
from dicom_node.results import encode
from dicom_node.tables import ObjectRow, OutcomeRow, ScreeningRow, TransitionRow
from tests.ledger_factories import received
from tests.result_factories import manifest
from workers.ensemble import DeviceError
from workers.screening import Screener


class FakeEnsemble:
    """Answers as the manifest says, or does what `fault` does."""

    def __init__(self, fault=None):
        self.manifest = manifest()
        self.fault = fault
        self.asked = 0
        self.thresholds = []
        self.squares = ((8, 0),)
        self.batch_size = 1

    def predict(self, images, thresholds=None):
        assert [set(squares) for squares in images] == [set(self.squares)] * len(images)
        self.thresholds.append(thresholds)
        self.asked += 1
        if self.fault is not None:
            self.fault()
        target = self.manifest.targets[0]
        found = MemberMap("zhang", "p_cls", np.eye(6, dtype=np.uint8) * 255, (0.1, 0.1, 0.8, 0.8))
        return [
            Prediction(
                bundle=self.manifest.name,
                release=self.manifest.release,
                operating_point=target.operating_point,
                targets=(TargetResult(target.name, told(squares[8, 0]), target.threshold, Decision.INDETERMINATE),),
                members={"zhang": {"p_cls": 0.7}, "basu": {"p_cls": 0.8}},
                maps=(found,),
            )
            for squares in images
        ]


def told(square):
    """A probability that tells one image from another."""
    return float(square.mean())


class Bench:
    """A ledger with one claimed film, and everything that a `Screener` needs."""

    def __init__(self, folder, children):
        self.children = children
        self.database = Database(f"sqlite:///{folder / 'ledger.sqlite'}")
        self.database.upgrade()
        self.ledger, self.claims, self.archive = Ledger(self.database), Claims(self.database), Archive(folder / "a")
        self.ledger.activate_release(manifest())
        self.settings = Settings(retry_base_s=0.01, lease_s=60.0, heatmap_size=256)
        film = self.archive.store(encode(phantom_dataset(0)))
        self.ledger.record(received(file=film, sha256=film.sha256))
        self.claim = self.claims.claim("worker", 60)

    def screener(self, ensemble, **changed):
        settings = self.settings.model_copy(update=changed)
        return Screener(self.claims, self.archive, ensemble, self.children, settings)

    def screen(self, ensemble, claim=None):
        self.screener(ensemble).screen([claim or self.claim])

    def more(self, count):
        """Further films, unclaimed."""
        for number in range(2, 2 + count):
            film = self.archive.store(encode(phantom_dataset(number)))
            self.ledger.record(received(number, file=film, sha256=film.sha256))

    def lose_lease(self):
        with self.database.write() as session:
            session.execute(update(ScreeningRow).values(attempt=ScreeningRow.attempt + 1))

    def row(self):
        with self.database.read() as session:
            return session.scalars(select(ScreeningRow)).one()


@pytest.fixture(scope="module")
def children():
    with decoders(Settings(decode_processes=2)) as found:
        yield found


@pytest.fixture
def bench(tmp_path, children):
    found = Bench(tmp_path, children)
    yield found
    found.database.close()


def raising(error):
    def fault():
        raise error

    return fault


def test_a_film_becomes_maps_and_a_heatmap_for_a_report_to_cite(bench):
    bench.screen(FakeEnsemble())
    with bench.database.read() as session:
        kinds = session.scalars(select(ObjectRow.kind).order_by(ObjectRow.id)).all()
        states = session.scalars(select(TransitionRow.to_state).order_by(TransitionRow.id)).all()
    assert kinds == ["map", "heatmap"]
    assert states == ["waiting", "claimed", "predicted", "reported"]


def test_two_workers_build_the_same_bytes_from_the_same_prediction_and_the_network_runs_once(bench):
    ensemble = FakeEnsemble()
    bench.screen(ensemble)

    def produced():
        with bench.database.read() as session:
            rows = session.scalars(select(ObjectRow).where(ObjectRow.kind != "map").order_by(ObjectRow.id)).all()
        return [(row.sop_instance_uid, row.sha256) for row in rows]

    first = produced()
    with bench.database.write() as session:  # as if the first worker had died before it could save its results
        for row in session.scalars(select(ObjectRow).where(ObjectRow.kind != "map")):
            session.delete(row)
        session.execute(update(ScreeningRow).values(state="predicted"))
    bench.screen(ensemble, bench.claims.claim("other", 60))
    assert produced() == first
    assert ensemble.asked == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left"), OperationalError("", {}, Exception())])
def test_a_full_disk_or_a_lost_database_is_not_counted_against_the_film(bench, error):
    with pytest.raises(type(error)):
        bench.screen(FakeEnsemble(raising(error)))
    assert (bench.row().state, bench.row().failures) == ("waiting", 0)
    assert bench.row().not_before is not None


def test_a_lost_device_gives_the_film_back_and_ends_the_worker(bench):
    with pytest.raises(DeviceError):
        bench.screen(FakeEnsemble(raising(DeviceError("cuda:0 failed"))))
    assert (bench.row().state, bench.row().failures) == ("waiting", 0)


def test_a_bundle_that_was_changed_under_the_node_answers_nothing(bench):
    ensemble = FakeEnsemble()
    ensemble.manifest = manifest().model_copy(update={"release": "other"})
    with pytest.raises(BundleError, match="the worker starts again"):
        bench.screen(ensemble)
    assert ensemble.asked == 0
    assert (bench.row().state, bench.row().failures) == ("waiting", 0)


def test_an_unforeseen_error_is_counted_told_without_its_text_and_ends_the_film_at_the_third(bench, caplog):
    ensemble = FakeEnsemble(raising(ValueError("PHANTOM^1")))
    claim = bench.claim
    for _ in range(3):
        bench.screen(ensemble, claim)
        time.sleep(0.1)
        claim = bench.claims.claim("worker", 60)
    assert claim is None
    row = bench.row()
    assert (row.state, row.reason) == ("failed", "attempts_exhausted")
    assert row.detail.startswith("ValueError at test_screening.py:")
    assert "PHANTOM" not in caplog.text


def test_too_little_memory_is_counted_and_ends_the_worker(bench):
    with pytest.raises(MemoryError):
        bench.screen(FakeEnsemble(raising(MemoryError())))
    assert (bench.row().state, bench.row().failures) == ("waiting", 1)


def test_a_film_that_its_child_has_no_memory_for_fails_and_the_next_is_on_time(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(1)
    bench.archive.locate(bench.claim.path).write_bytes(encode(film_of(9000, 9000)))
    with decoders(Settings(decode_processes=1, decode_memory_mb=128)) as bench.children:
        assert bench.screener(FakeEnsemble(), max_pixels=100_000_000, batch_size=2).screen_next() == 2
    assert states(bench) == ["failed", "reported"]
    with bench.database.read() as session:
        assert session.scalars(select(ScreeningRow.reason).order_by(ScreeningRow.id)).first() == "decoder_memory"


def film_of(rows, columns):
    ds = phantom_dataset(0)
    ds.Rows, ds.Columns, ds.PixelData = rows, columns, bytes(2 * rows * columns)
    return ds


def test_an_error_that_nobody_foresaw_is_held_against_one_film_of_its_batch(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(2)
    ensemble = FakeEnsemble()
    ensemble.batch_size = 8
    ensemble.fault = lambda: raising(ValueError("x"))() if ensemble.asked in (1, 3) else None
    with monkeypatched_wait(bench):
        bench.screener(ensemble, batch_size=3).screen_next()
    assert sorted(states(bench)) == ["reported", "reported", "waiting"]


@contextmanager
def monkeypatched_wait(bench):
    """Every film is decoded before the first is taken, so that they make one batch."""
    submit = bench.children.submit

    def waiting(*arguments):
        future = submit(*arguments)
        wait([future])
        return future

    bench.children.submit = waiting
    try:
        yield
    finally:
        del bench.children.submit


def test_what_was_declined_by_its_pixels_is_declined_and_the_rest_goes_on(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(1)
    ensemble = FakeEnsemble()
    predict, declined = ensemble.predict, DeclinedByPixelsError(DeclineReason.LATERAL, "the pixels look like: lateral")
    ensemble.predict = lambda images, thresholds: (
        [declined] if not ensemble.asked and predict(images) else predict(images)
    )
    bench.screener(ensemble, batch_size=2).screen_next()
    assert states(bench) == ["declined", "reported"]
    with bench.database.read() as session:
        row = session.scalars(select(ScreeningRow).order_by(ScreeningRow.id)).first()
    assert (row.reason, row.detail) == ("lateral", "the pixels look like: lateral")


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError()])
def test_a_worker_that_lost_its_lease_lives_on_whatever_its_film_does_then(bench, error):
    def fault():
        bench.lose_lease()
        raise error

    bench.screen(FakeEnsemble(fault))
    assert bench.row().state == "claimed"


def test_a_lost_lease_drops_the_result(bench):
    bench.screen(FakeEnsemble(bench.lose_lease))
    with bench.database.read() as session:
        assert session.scalars(select(ObjectRow)).all() == []


def test_a_film_that_the_archive_lost_fails_by_name(bench):
    bench.archive.locate(bench.claim.path).unlink()
    bench.screen(FakeEnsemble())
    assert (bench.row().state, bench.row().reason) == ("failed", "archive_missing")


def test_the_lease_is_renewed_while_the_network_thinks(bench):
    bench.settings = Settings(lease_s=2.0, heatmap_size=256)
    bench.claims.renew(bench.claim, 2.0)

    def think():
        for _ in range(9):
            time.sleep(0.4)
            assert bench.claims.expire_leases(max_failures=3) == 0

    bench.screen(FakeEnsemble(think))
    assert bench.row().state == "reported"


def states(bench):
    with bench.database.read() as session:
        return session.scalars(select(ScreeningRow.state).order_by(ScreeningRow.id)).all()


def test_a_worker_takes_a_batch_and_every_film_of_it_is_reported(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(3)
    assert bench.screener(FakeEnsemble(), batch_size=8).screen_next() == 4
    assert states(bench) == ["reported"] * 4


def test_each_film_gets_its_own_answer_whatever_else_is_in_its_batch(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(4)
    bench.archive.locate(bench.claim.path).write_bytes(b"no film")
    ensemble = FakeEnsemble()
    ensemble.batch_size = 3
    bench.screener(ensemble, batch_size=8).screen_next()
    expected = [told(square(render(phantom_dataset(number), max_pixels=10**7), 8)) for number in range(2, 6)]
    with bench.database.read() as session:
        found = session.scalars(select(OutcomeRow.probability).order_by(OutcomeRow.screening_id)).all()
    assert found == pytest.approx(expected)
    assert len(set(found)) == 4
    assert states(bench) == ["failed"] + ["reported"] * 4


def test_a_sites_threshold_reaches_the_networks(bench):
    Releases(bench.database).set_threshold(manifest(), "covid", 0.125, set_by="a radiologist", basis="our films")
    bench.claims.give_back(bench.claim, "", pause_s=0)
    ensemble = FakeEnsemble()
    bench.screener(ensemble).screen_next()
    assert ensemble.thresholds == [{"covid": 0.125}]


def test_a_film_whose_child_is_lost_twice_fails_by_name(bench, monkeypatch):
    def lost(*_):
        future = Future()
        future.set_exception(DecoderError("decoder_timeout", "too slow", permanent=False))
        return future

    monkeypatch.setattr(bench.children, "submit", lost)
    bench.screen(FakeEnsemble())
    assert (bench.row().state, bench.row().failures) == ("waiting", 1)
    time.sleep(0.1)
    bench.screen(FakeEnsemble(), bench.claims.claim("worker", 60))
    assert (bench.row().state, bench.row().reason) == ("failed", "decoder_timeout")


def test_one_bad_film_of_a_batch_fails_alone(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(2)
    bench.archive.locate(bench.claim.path).write_bytes(b"no film")
    assert bench.screener(FakeEnsemble(), batch_size=3).screen_next() == 3
    assert states(bench) == ["failed", "reported", "reported"]


def test_a_film_that_cannot_be_read_now_waits_uncounted_and_the_rest_of_its_batch_goes_on(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(2)
    path = bench.archive.locate(bench.claim.path)
    path.unlink()
    path.mkdir()  # reading it is an OSError, and not that it is missing
    bench.screener(FakeEnsemble(), batch_size=3).screen_next()
    assert states(bench) == ["waiting", "reported", "reported"]
    with bench.database.read() as session:
        assert session.scalars(select(ScreeningRow.failures)).all() == [0, 0, 0]


def test_a_film_that_took_its_worker_down_is_held_alone_from_then_on(bench):
    bench.more(3)
    with bench.database.write() as session:
        session.execute(update(ScreeningRow).where(ScreeningRow.id == 3).values(failures=1))
    batches = [[claim.screening_id for claim in bench.claims.claim_batch("worker", 60, 8)] for _ in range(3)]
    assert batches == [[2], [3], [4]]


def test_a_film_that_was_claimed_when_the_release_changed_is_screened_by_the_new_one(bench):
    changed = manifest().model_copy(update={"release": "other"})
    bench.ledger.activate_release(changed)
    bench.claims.give_back(bench.claim, "", pause_s=0)
    claim = bench.claims.claim("worker", 60)
    assert claim.manifest == changed
    ensemble = FakeEnsemble()
    ensemble.manifest = changed
    bench.screen(ensemble, claim)
    assert bench.row().state == "reported"


def test_what_a_lost_database_did_not_take_back_is_given_back_when_it_is_there_again(bench, monkeypatch):
    give_back = bench.claims.give_back_all

    def lost(*_, **__):
        raise OperationalError("", {}, Exception())

    monkeypatch.setattr(bench.claims, "give_back_all", lost)
    screener = bench.screener(FakeEnsemble(raising(OperationalError("", {}, Exception()))))
    with pytest.raises(OperationalError):
        screener.screen([bench.claim])
    assert bench.row().state == "claimed"
    screener.return_what_is_left()
    assert bench.row().state == "claimed"
    monkeypatch.setattr(bench.claims, "give_back_all", give_back)
    screener.return_what_is_left()
    assert (bench.row().state, bench.row().failures) == ("waiting", 0)


def test_a_worker_that_is_told_to_stop_gives_back_what_it_has_not_begun(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(2)
    screener, asked = bench.screener(FakeEnsemble(), batch_size=3), iter((False, True))
    screener.screen_next(lambda: next(asked))
    assert sorted(states(bench)) == ["reported", "waiting", "waiting"]  # whichever was decoded first
    with bench.database.read() as session:
        assert session.scalars(select(ScreeningRow.failures)).all() == [0, 0, 0]


def test_a_lost_device_gives_the_whole_batch_back(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(2)
    with pytest.raises(DeviceError):
        bench.screener(FakeEnsemble(raising(DeviceError("cuda:0 failed"))), batch_size=3).screen_next()
    assert states(bench) == ["waiting"] * 3


def test_live_work_goes_first_and_in_a_batch_of_its_own(bench):
    bench.more(3)
    with bench.database.write() as session:
        first = session.scalars(select(ScreeningRow.id).order_by(ScreeningRow.id).offset(1)).all()[:2]
        session.execute(update(ScreeningRow).where(ScreeningRow.id.in_(first)).values(purpose="retrospective"))
    batches = [bench.claims.claim_batch("worker", 60, 2) for _ in range(2)]
    assert [[claim.screening_id for claim in batch] for batch in batches] == [[4], [2, 3]]


def test_a_lost_database_pauses_the_worker_and_ends_nothing(bench, monkeypatch, caplog):
    monkeypatch.setattr("workers.screening._PAUSE_AFTER_FAULT_S", 0)

    def lost(*_):
        raise OperationalError("SELECT name", {"name": "PHANTOM"}, Exception())

    monkeypatch.setattr(bench.claims, "claim_batch", lost)
    assert bench.screener(FakeEnsemble()).screen_next() == 0
    assert "the worker pauses: " in caplog.text
    assert "(OperationalError)" in caplog.text
    assert "PHANTOM" not in caplog.text


def test_a_batch_of_a_run_gives_way_to_a_live_film_after_the_image_at_hand(bench):
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.more(3)
    with bench.database.write() as session:
        session.execute(update(ScreeningRow).values(purpose="retrospective", delivers=False))
    film = bench.archive.store(encode(phantom_dataset(9)))
    ensemble = FakeEnsemble(lambda: bench.ledger.record(received(9, file=film, sha256=film.sha256)))
    bench.screener(ensemble, batch_size=4).screen_next()
    assert ensemble.asked == 1
    assert sorted(states(bench)[:4]) == ["waiting", "waiting", "waiting", "withheld"]
    with bench.database.read() as session:
        assert set(session.scalars(select(ScreeningRow.failures))) == {0}
        assert set(session.scalars(select(ScreeningRow.not_before))) == {None}
    (live,) = bench.claims.claim_batch("worker", 60, 4)
    assert live.purpose == "live"


def test_a_run_s_screening_ends_withheld_with_a_heatmap_only_where_it_is_flagged(bench):
    with bench.database.write() as session:
        session.execute(update(ScreeningRow).values(purpose="retrospective", delivers=False))
    bench.claims.give_back(bench.claim, "", pause_s=0)
    bench.screener(FakeEnsemble()).screen_next()  # indeterminate
    assert states(bench) == ["withheld"]
    with bench.database.read() as session:
        assert session.scalars(select(ObjectRow.kind).distinct()).all() == ["map"]
