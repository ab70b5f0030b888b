"""Every migration on both databases: equal to the models, done once, all or nothing, and no harm to the older code."""

import logging
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dicom_node import postgres
from dicom_node.database import Database, UnreachableError
from dicom_node.tables import Base
from dicom_node.worklist.listing import Cursor, Filters, page

FOLDER = Path(__file__).parents[2] / "migrations"


def revisions():
    """From the oldest to the newest."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


@pytest.fixture
def empty_on_postgres(postgres_server):
    """A database without any table."""
    name = f"empty_{time.monotonic_ns()}"
    postgres_server.create_database(name)
    database = Database(postgres_server.dsn(name))
    yield database
    database.close()
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request, tmp_path):
    """A database without any table, of both kinds."""
    if request.param == "postgresql":
        yield request.getfixturevalue("empty_on_postgres")
    else:
        database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
        yield database
        database.close()


def differences(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, Base.metadata)


def test_the_migrations_make_the_tables_of_the_models(database):
    assert differences(database) == []


def test_a_planted_difference_between_migrations_and_models_is_seen(database):
    with database.write() as session:
        session.execute(sa.text("ALTER TABLE instances ADD COLUMN planted TEXT"))
    assert differences(database) != []


def test_every_migration_has_its_number_and_a_verb():
    names = sorted(path.stem for path in (FOLDER / "versions").glob("*.py"))
    assert [name.partition("_")[0] for name in names] == revisions()
    assert all(name.count("_") >= 2 for name in names)


def some(column, word):
    """A value of the column's type; all references are to row 1."""
    for known, value in (
        (sa.Boolean, True),
        (sa.Integer, 1),
        (sa.Float, 0.5),
        (sa.DateTime, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (sa.JSON, [word]),
        (sa.String, word),
    ):
        if isinstance(column.type, known):
            return value
    raise AssertionError(f"no value for {column}")


def is_numbered(table):
    """Whether the database gives each row its number."""
    key = list(table.primary_key)
    return len(key) == 1 and not key[0].foreign_keys


def use(connection, tables, word):
    """INSERT, UPDATE and SELECT as code does that knows these tables and no others."""
    for table in tables:
        numbered = is_numbered(table)
        values = {column.name: some(column, word) for column in table.columns if not (numbered and column.primary_key)}
        if all(column.foreign_keys for column in table.primary_key):  # a link between rows 1, which can be made once
            connection.execute(table.delete())
        key = connection.execute(table.insert().values(values)).inserted_primary_key
        this = sa.and_(*(column == value for column, value in zip(table.primary_key, key, strict=True)))
        assert connection.execute(table.update().values(values).where(this)).rowcount == 1
        found = connection.execute(sa.select(table).where(this)).mappings().one()
        for name, value in values.items():
            seen = found[name]
            if isinstance(value, datetime) and seen.tzinfo is None:
                seen = seen.replace(tzinfo=UTC)
            assert seen == value


@pytest.mark.parametrize(("older", "newer"), list(zip(revisions(), revisions()[1:], strict=False)))
def test_code_of_the_revision_before_works_on_the_newer_tables(empty, older, newer):
    """So that an upgrade needs no stop: the old processes run on until they are replaced."""
    empty.upgrade(older)
    with empty.engine.connect() as connection:
        found = sa.MetaData()
        found.reflect(connection)
        tables = [
            table
            for table in found.sorted_tables
            if table.name != "alembic_version"
            and connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0  # not made by a migration
        ]
    assert tables
    with empty.write() as session:
        use(session.connection(), tables, "before")
    empty.upgrade(newer)
    with empty.write() as session:
        use(session.connection(), tables, "after")


def downgrade(database, revision):
    """As `alembic downgrade` does it; the node itself never goes back."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["on_version_apply"] = lambda **_: None
    engine = database._engine_of_migrations()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()


def test_a_filled_ledger_learns_its_decisions_keeps_its_flags_and_finds_the_way_back(empty):
    empty.upgrade("0002")

    def tables(*names):
        found = sa.MetaData()
        found.reflect(empty.engine)
        return [found.tables[name] for name in names]

    older = tables("instances", "releases", "screenings", "outcomes")
    with empty.write() as session:
        use(session.connection(), older, "before")
        outcomes = older[-1]
        row = {"screening_id": 1, "position": 2, "operating_point": "balanced", "probability": 0.1, "threshold": 0.5}
        session.execute(outcomes.insert().values(target="other", flagged=False, **row))
    empty.upgrade("0003")
    with empty.write() as session:  # beside it, a worker of the version before
        session.execute(outcomes.insert().values(target="late", flagged=True, **row))
    screenings, newer = tables("screenings", "outcomes")
    with empty.read() as session:
        found = session.execute(sa.select(newer.c.target, newer.c.flagged, newer.c.decision)).tuples()
        assert {target: (bool(flag), decision) for target, flag, decision in found} == {
            "before": (True, "flagged"),
            "other": (False, "not_flagged"),
            "late": (True, ""),
        }
        assert [list(remarks) for remarks in session.scalars(sa.select(screenings.c.remarks))] == [[]]
    downgrade(empty, "0002")
    with empty.read() as session:
        kept = session.execute(sa.select(outcomes.c.target, outcomes.c.flagged)).tuples()
        assert {(target, bool(flag)) for target, flag in kept} == {("before", True), ("other", False), ("late", True)}
    empty.upgrade()
    assert differences(empty) == []


def test_what_was_sent_before_proofs_were_asked_for_is_not_asked_for_all_at_once(empty):
    empty.upgrade("0003")
    found = sa.MetaData()
    found.reflect(empty.engine)
    with empty.write() as session:
        names = ("releases", "instances", "screenings", "objects", "deliveries")
        use(session.connection(), [found.tables[name] for name in names], "sent")
        session.execute(sa.text("UPDATE deliveries SET state = 'sent'"))
    empty.upgrade()
    with empty.read() as session:
        assert session.scalars(sa.text("SELECT state FROM deliveries")).all() == ["unproven"]


def test_a_process_killed_in_mid_migration_leaves_nothing_half_made(empty):
    """A real SIGKILL inside the migration, after its fourth table."""
    code = (
        "import os, signal, alembic.op\n"
        "from dicom_node.database import Database\n"
        "create, made = alembic.op.create_table, []\n"
        "def kill_at_fourth(*a, **k):\n"
        "    made.append(create(*a, **k))\n"
        "    if len(made) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "alembic.op.create_table = kill_at_fourth\n"
        f"Database({empty.url!r}).upgrade()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGKILL
    with empty.engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == []
    empty.upgrade()
    empty.check_schema()


def test_each_revision_is_told_with_one_line(empty, caplog):
    with caplog.at_level(logging.INFO, "dicom_node"):
        empty.upgrade()
        empty.upgrade()
    told = [record.message for record in caplog.records if record.name == "dicom_node.database"]
    assert [line.split(":")[0] for line in told] == [f"the ledger's schema is now {name}" for name in revisions()]


def test_four_upgrades_at_once_do_it_once(empty):
    code = (
        "import logging, sys\n"
        "from dicom_node.database import Database\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "print('ready', flush=True); input()\n"
        f"Database({empty.url!r}).upgrade()"
    )
    callers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for caller in callers:
        assert caller.stdout.readline() == "ready\n"
    for caller in callers:
        caller.stdin.write("\n")
        caller.stdin.flush()
    told = "".join(caller.communicate(timeout=60)[0] for caller in callers)
    assert [caller.returncode for caller in callers] == [0] * 4
    assert told.count("the ledger's schema is now") == len(revisions())
    empty.check_schema()


@pytest.fixture
def behind(empty_on_postgres):
    """A ledger on PostgreSQL at its first revision."""
    empty_on_postgres.upgrade(revisions()[0])
    return empty_on_postgres


def test_a_long_transaction_is_not_waited_for_at_the_cost_of_the_node(behind, monkeypatch):
    monkeypatch.setitem(postgres._MIGRATION_LIMITS_MS, "lock_timeout", 100)
    monkeypatch.setattr("dicom_node.database._LOCK_PAUSE_S", 0.05)
    monkeypatch.setattr("dicom_node.database._LOCK_TRIES", 3)
    slowest, stop = [0.0], threading.Event()

    def look():
        while not stop.is_set():
            began = time.monotonic()
            with behind.read() as session:
                session.execute(sa.text("SELECT id FROM deliveries")).all()
            slowest[0] = max(slowest[0], time.monotonic() - began)

    with behind.read() as long_one:
        long_one.execute(sa.text("SELECT id FROM deliveries")).all()
        node = threading.Thread(target=look)
        node.start()
        with pytest.raises(UnreachableError, match=r"long transaction holds the tables of .*: the schema is as it was"):
            behind.upgrade()
        stop.set()
        node.join()
    assert slowest[0] < 2
    behind.upgrade()
    behind.check_schema()


def test_an_upgrade_goes_on_when_the_long_transaction_ends(behind, monkeypatch):
    monkeypatch.setitem(postgres._MIGRATION_LIMITS_MS, "lock_timeout", 100)
    monkeypatch.setattr("dicom_node.database._LOCK_PAUSE_S", 0.1)
    with behind.read() as long_one:
        long_one.execute(sa.text("SELECT id FROM deliveries")).all()
        upgrade = threading.Thread(target=behind.upgrade)
        upgrade.start()
        time.sleep(0.4)
    upgrade.join(10)
    behind.check_schema()


def test_studies_that_are_known_already_come_into_the_worklist_as_read_and_can_be_found(empty):
    empty.upgrade("0005")
    computed, digital, report = (f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("1", "1.1.1", "88.11"))
    studies = {
        1: (1, digital, "live"),
        2: (1, digital, "live"),
        3: (2, report, "live"),
        4: (3, computed, "retrospective"),
    }
    with empty.write() as session:
        connection = session.connection()
        found = sa.MetaData()
        found.reflect(connection)

        def add(name, **values):
            table = found.tables[name]
            needed = {one.name: some(one, "1") for one in table.columns if not (one.nullable or one.primary_key)}
            connection.execute(table.insert().values(needed | values))

        add("releases", id=1)
        for number, (study, sop_class, purpose) in studies.items():
            add(
                "instances",
                id=number,
                sop_instance_uid=f"1.2.{number}",
                study_instance_uid=f"1.3.{study}",
                sop_class_uid=sop_class,
                patient_name="ROE^JO",
                accession_number="A-7",
            )
            add("screenings", id=number, instance_id=number, purpose=purpose, state="delivered")
        add("outcomes", screening_id=2, target="x", probability=0.75, decision="flagged")
    empty.upgrade()
    (line,) = page(empty, Filters(read="read", text="roe a-7"), UTC).lines
    study = line.study
    assert (study.study_instance_uid, study.flagged, study.probability) == ("1.3.1", True, 0.75)
    assert study.arrived_at == study.due_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert page(empty, Filters(), UTC).lines == []
    after = Cursor(study.due_at, study.id)
    assert page(empty, Filters(read="all"), UTC, after=after).lines == []
    assert len(page(empty, Filters(read="all"), UTC, after=after._replace(study_id=study.id - 1)).lines) == 1
