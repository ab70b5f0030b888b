"""The servers that other tests stand on: what they keep over a kill, and that nothing of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis

from tests.servers import PostgresServer, RedisServer


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_postgres_comes_back_with_what_was_committed(postgres_server):
    with PostgresServer() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (x int)")
            connection.execute("INSERT INTO kept VALUES (1)")
            server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.dsn())
        server.start()
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SELECT x FROM kept").fetchall() == [(1,)]
        folder = server.folder
    assert not folder.exists()


def test_postgres_asks_for_the_password(postgres_server):
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(postgres_server.url())


def test_a_database_is_copied_and_dropped_while_it_is_in_use(postgres_server):
    postgres_server.create_database("original")
    with psycopg.connect(postgres_server.dsn("original")) as connection:
        connection.execute("CREATE TABLE copied (x int)")
    postgres_server.create_database("copy", "original")
    with psycopg.connect(postgres_server.dsn("copy")) as connection:
        assert connection.execute("SELECT count(*) FROM copied").fetchall() == [(0,)]
        postgres_server.drop_database("copy")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    postgres_server.drop_database("original")


def test_a_killed_redis_comes_back_with_what_it_had(redis_server):
    with RedisServer() as server:
        with server.client() as client:
            client.set("kept", 1)
        server.kill()
        server.start()
        with redis.Redis.from_url(server.dsn) as client:
            assert client.get("kept") == b"1"
        with redis.Redis.from_url(server.url) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_servers_die_with_the_process_that_started_them(postgres_server, redis_server):
    code = (
        "import os; from tests.servers import PostgresServer, RedisServer\n"
        "with PostgresServer(fsync=False) as postgres, RedisServer() as redis:\n"
        "    print(postgres.pid, redis.pid, postgres.folder, redis.folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == -signal.SIGKILL
    postgres, redis_pid, *folders = found.stdout.split()
    until = time.monotonic() + 10
    while runs(postgres) or runs(redis_pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)  # PostgreSQL's other processes see that the first one is gone
    subprocess.run(["rm", "-rf", *folders], check=True, cwd=os.sep)
