"""The database as a server that is down, full, starting, in another hand or at another version."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from dicom_node.database import Database, SchemaError, UnreachableError
from dicom_node.demo.pacs import free_port

WRONG = "a-wrong-password"


@pytest.fixture
def own_server(postgres_server):
    """A PostgreSQL of this test alone, to be stopped and killed."""
    from tests.servers import PostgresServer

    server = PostgresServer(fsync=False, max_connections=10)
    with server:
        yield server


@pytest.fixture
def opened():
    """Opens databases and closes them at the end."""
    found = []

    def open_database(url):
        found.append(Database(url))
        return found[-1]

    yield open_database
    for database in found:
        database.close()


def told(caplog):
    return [(record.levelname, record.message) for record in caplog.records if record.name == "dicom_node.database"]


def wait_until(condition, timeout_s=20.0):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# What the URL says


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_the_driver_is_psycopg_3_whatever_the_url_says(scheme):
    database = Database(f"{scheme}://cxr@db.example/ledger")
    assert (database.engine.dialect.driver, database.embedded) == ("psycopg", False)
    assert database.place == "db.example:5432/ledger"


def test_sqlite_is_embedded(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/ledger.sqlite")
    assert (database.embedded, database.place) == (True, f"{tmp_path}/ledger.sqlite")


@pytest.mark.parametrize(
    "url", ["mysql://cxr:secret@host/ledger", "cxr:secret", "", "postgresql://cxr:secret@host:x/l"]
)
def test_a_url_of_nothing_known_is_one_line_without_its_password(url):
    with pytest.raises(SchemaError, match="database_url cannot be used") as caught:
        Database(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SchemaError, match=r"pip install 'cxr-dicom-node\[service\]'"):
        Database("postgresql://cxr@db.example/ledger")


# What a server refuses: nobody waits for that


def changed(dsn, **parts):
    return sa.make_url(dsn).set(**parts).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def refusing(postgres_server):
    """The server with what it refuses: a role without login, a database without CONNECT."""
    with postgres_server.admin() as admin:
        admin.execute(f"CREATE ROLE locked_out NOLOGIN PASSWORD '{WRONG}'")
        admin.execute("CREATE DATABASE closed")
        admin.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    return postgres_server


@pytest.mark.parametrize(
    ("parts", "query", "said"),
    [
        ({"password": WRONG}, {}, 'password authentication failed for user "cxr"'),
        ({"password": ""}, {}, "fe_sendauth: no password supplied"),
        ({"username": "nobody", "password": WRONG}, {}, 'password authentication failed for user "nobody"'),
        ({"username": "locked_out", "password": WRONG}, {}, 'role "locked_out" is not permitted to log in'),
        ({"database": "nowhere"}, {}, 'database "nowhere" does not exist'),
        ({"database": "closed"}, {}, 'permission denied for database "closed"'),
        ({}, {"sslmode": "require"}, "server does not support SSL, but SSL was required"),
        ({}, {"options": "-c nonsense=1"}, 'unrecognized configuration parameter "nonsense"'),
    ],
)
def test_what_waiting_cannot_cure_ends_the_start_with_one_line(refusing, opened, parts, query, said):
    url = changed(refusing.dsn(), **parts, query=query)
    database = opened(url)
    for ask in (database.check_schema, database.upgrade, database.ledger_id, database.clock_offset_s):
        with pytest.raises(SchemaError) as caught:
            ask()
        message = str(caught.value)
        assert f"{database.place} cannot be used ({said})" in message
        assert "check database_url and database_password" in message
        assert "\n" not in message
        assert refusing.password not in message
        assert WRONG not in message
    began = time.monotonic()
    with pytest.raises(SchemaError):
        database.await_ready(threading.Event())
    assert time.monotonic() - began < 1


def test_a_host_without_entry_in_pg_hba_is_refused(own_server, opened):
    (own_server.folder / "data" / "pg_hba.conf").write_text("host all postgres 127.0.0.1/32 scram-sha-256\n")
    own_server.stop()
    own_server.start()
    with pytest.raises(SchemaError, match=r"no pg_hba.conf entry for host"):
        opened(own_server.dsn()).check_schema()


# What passes


def unreachable(database):
    with pytest.raises(UnreachableError) as caught:
        database.check_schema()
    message = str(caught.value)
    assert message.startswith(f"the database {database.place} does not answer (")
    assert "\n" not in message
    assert not caught.value.permanent
    return message


def test_a_server_that_is_down_passes(opened):
    assert "Connection refused" in unreachable(opened(f"postgresql://cxr:x@127.0.0.1:{free_port()}/cxr"))


def test_a_name_that_is_not_known_passes():
    """In a network of containers a server has no name before it runs."""
    assert "failed to resolve host" in unreachable(Database("postgresql://cxr:x@nowhere.invalid/cxr"))


def test_a_server_that_says_nothing_passes(opened):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://cxr:x@127.0.0.1:{silent.getsockname()[1]}/cxr?connect_timeout=2"
        assert "timeout" in unreachable(opened(url))


def test_a_server_without_a_free_connection_passes(own_server, opened):
    with ExitStack() as others:
        for _ in range(7):  # of ten, three are kept for the superuser
            others.enter_context(opened(own_server.dsn()).engine.connect())
        assert "connection slots are reserved" in unreachable(opened(own_server.dsn()))


def test_a_server_that_shuts_down_passes(own_server, opened):
    with opened(own_server.dsn()).engine.connect():
        os.kill(own_server.pid, signal.SIGTERM)  # it waits for the connection to end
        time.sleep(0.3)
        assert "the database system is shutting down" in unreachable(opened(own_server.dsn()))


@pytest.mark.parametrize(
    "text",
    [
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is not yet accepting connections\nDETAIL:  Consistent recovery state ...",
        "FATAL:  sorry, too many clients already",
        "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally",
    ],
)
def test_what_a_starting_or_dying_server_says_passes(text):
    """As psycopg 3.3 and PostgreSQL 15 said it; a moment too short to be met on purpose."""
    import psycopg

    where = 'connection failed: connection to server at "127.0.0.1", port 5432'
    error = OperationalError("SELECT 1", {}, psycopg.OperationalError(f"{where} failed: {text}"))
    explained = Database("postgresql://cxr@db.example/ledger").explain(error)
    assert isinstance(explained, UnreachableError)
    assert "\n" not in str(explained)


def test_a_statement_that_is_too_slow_passes_and_a_wrong_one_does_not(postgres_dsn, opened):
    database = opened(postgres_dsn + "?options=-c%20statement_timeout%3D50")
    for statement, kind in (("SELECT pg_sleep(5)", UnreachableError), ("SELECT nothing", SchemaError)):
        with pytest.raises(SQLAlchemyError) as caught, database.read() as session:
            session.execute(sa.text(statement))
        assert type(database.explain(caught.value)) is kind


def test_a_restarted_server_costs_the_next_transaction_nothing(own_server, opened):
    database = opened(own_server.dsn())
    database.upgrade()
    name = database.ledger_id()
    own_server.kill()
    with pytest.raises(UnreachableError):
        database.ledger_id()
    own_server.start()
    assert database.ledger_id() == name


# Waiting


def waiting(database, stop=None):
    """`await_ready` in a thread; its answer or its error stands in the list when the thread has ended."""
    answers, stop = [], stop or threading.Event()

    def wait():
        try:
            answers.append(database.await_ready(stop, pause_s=0.05))
        except SchemaError as error:
            answers.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, answers


def test_a_process_waits_for_its_database_and_says_so_once(own_server, opened, caplog):
    database = opened(own_server.dsn())
    database.upgrade()
    own_server.stop()
    caplog.clear()
    with caplog.at_level(logging.INFO, "dicom_node"):
        thread, answers = waiting(database)
        wait_until(lambda: told(caplog))
        time.sleep(0.4)
        assert answers == []
        own_server.start()
        thread.join(20)
    assert answers == [True]
    (warned, ready) = told(caplog)
    assert warned[0] == "WARNING"
    assert f"{database.place} does not answer" in warned[1]
    assert ready == ("INFO", f"the database {database.place} is ready")


def test_it_is_told_again_after_a_minute(opened, caplog, monkeypatch):
    monkeypatch.setattr("dicom_node.database._TELL_AGAIN_S", 0.3)
    stop = threading.Event()
    thread, answers = waiting(opened(f"postgresql://cxr:x@127.0.0.1:{free_port()}/cxr"), stop)
    wait_until(lambda: len(told(caplog)) == 2)
    stop.set()
    thread.join(10)
    assert answers == [False]


def test_a_database_that_is_there_is_not_spoken_of(postgres_dsn, opened, caplog):
    with caplog.at_level(logging.INFO, "dicom_node"):
        assert opened(postgres_dsn).await_ready(threading.Event())
    assert told(caplog) == []


@pytest.fixture
def empty(postgres_server, opened):
    name = f"empty_{time.monotonic_ns()}"
    postgres_server.create_database(name)
    database = opened(postgres_server.dsn(name))
    yield database
    database.close()
    postgres_server.drop_database(name)


@pytest.mark.parametrize("older", [None, "0001"])
def test_an_upgrade_that_may_be_under_way_is_waited_for(empty, older, caplog):
    if older:
        empty.upgrade(older)
        caplog.clear()  # what it did is told where another test had the node's log told
    thread, answers = waiting(empty)
    wait_until(lambda: told(caplog))
    assert "this version needs" in told(caplog)[0][1]
    assert "run `dicom-node db upgrade`; waiting 60 s for that" in told(caplog)[0][1]
    empty.upgrade()
    thread.join(10)
    assert answers == [True]


def test_an_upgrade_that_does_not_come_is_not_waited_for_longer(empty, monkeypatch):
    monkeypatch.setattr("dicom_node.database._MIGRATION_PATIENCE_S", 0.2)
    with pytest.raises(SchemaError, match=r"schema is empty, this version needs .*: run `dicom-node db upgrade`"):
        empty.await_ready(threading.Event(), pause_s=0.05)


def test_the_schema_of_a_later_version_is_refused_at_once(database):
    with database.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match=r"schema is 9999, this version needs .*: a later version of the program"):
        database.await_ready(threading.Event())


def test_without_a_server_there_is_nothing_to_wait_for(tmp_path):
    with pytest.raises(SchemaError, match=r"there is no ledger .*: start `dicom-node up` once"):
        Database(f"sqlite:///{tmp_path}/nowhere.sqlite").await_ready(threading.Event())


def test_a_file_without_schema_is_refused(tmp_path, opened):
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(SchemaError, match=r"schema is empty, .*: start `dicom-node up` once"):
        opened(f"sqlite:///{tmp_path / 'empty.sqlite'}").check_schema()


# Transactions


def test_what_is_read_in_one_block_is_of_one_moment(database):
    with database.read() as session:
        before = session.scalar(sa.text("SELECT ledger_id FROM node"))
        with database.write() as writer:
            writer.execute(sa.text("UPDATE node SET ledger_id = 'another'"))
        assert session.scalar(sa.text("SELECT ledger_id FROM node")) == before
    assert database.ledger_id() == "another"


def test_who_reads_cannot_write_on_postgresql(postgres_dsn, opened):
    database = opened(postgres_dsn)
    with pytest.raises(DBAPIError, match="read-only transaction"), database.read() as session:
        session.execute(sa.text("UPDATE node SET ledger_id = 'another'"))
    with database.write() as session:  # the connection that read, again
        session.execute(sa.text("UPDATE node SET ledger_id = 'another'"))
        assert session.scalar(sa.text("SHOW transaction_isolation")) == "read committed"


def test_a_matter_is_in_one_hand_at_a_time(database):
    inside, most, lock = [0], [0], threading.Lock()

    def work():
        with database.write(alone="test") as session:
            session.execute(sa.text("SELECT 1"))
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_no_statement_lock_or_transaction_lasts_for_ever(postgres_dsn, opened):
    wanted = {
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "1min",
        "TimeZone": "UTC",
        "application_name": "dicom-node",
        "tcp_user_timeout": "0",  # the server's own; the client's is in the connection
    }
    with opened(postgres_dsn).read() as session:
        assert {name: session.scalar(sa.text(f"SHOW {name}")) for name in wanted} == wanted
        driver = session.connection().connection.driver_connection
        asked = driver.info.get_parameters()
    assert {name: asked[name] for name in ("connect_timeout", "keepalives_idle", "tcp_user_timeout")} == {
        "connect_timeout": "5",
        "keepalives_idle": "10",
        "tcp_user_timeout": "20000",
    }


def test_what_the_url_asks_for_goes_before(postgres_dsn, opened):
    url = f"{postgres_dsn}?application_name=theirs&options=-c%20lock_timeout%3D77"
    with opened(url).read() as session:
        found = {name: session.scalar(sa.text(f"SHOW {name}")) for name in ("application_name", "lock_timeout")}
        assert found == {"application_name": "theirs", "lock_timeout": "77ms"}
        assert session.scalar(sa.text("SHOW statement_timeout")) == "30s"


# Identity and clock


def test_a_ledger_keeps_its_identity(database):
    found = database.ledger_id()
    database.upgrade()
    assert database.ledger_id() == found
    assert len(found) == 36


def test_two_ledgers_are_two(tmp_path, opened, postgres_dsn):
    found = [opened(f"sqlite:///{tmp_path}/{name}.sqlite") for name in "ab"]
    for database in found:
        database.upgrade()
    assert len({database.ledger_id() for database in [*found, opened(postgres_dsn)]}) == 3


def test_the_clock_of_a_database_on_this_machine_is_this_machines(database):
    assert abs(database.clock_offset_s()) < 0.05


def test_a_clock_that_is_wrong_is_seen(database, monkeypatch):
    here = time.time
    monkeypatch.setattr("dicom_node.database.time.time", lambda: here() + 60)
    assert database.clock_offset_s() == pytest.approx(-60, abs=0.05)
