"""How long the worklist takes to answer, over a ledger of a million studies on PostgreSQL.

python -m benchmarks.worklist                                # a million studies, all unread; a server of its own
python -m benchmarks.worklist --read 0.98                    # most of them read
python -m benchmarks.worklist --studies 100000 --database postgresql://USER@HOST/NAME     # an empty database

The real application is asked, logged in, one request after the other: pages and API, the first page and pages that
begin at random studies, by each filter. The reference is a bare SELECT of fifty studies in the same order. Exit
status 1 where more than one answer in twenty takes longer than 100 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import psycopg
from starlette.testclient import TestClient

from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.domain import State
from dicom_node.worklist import listing
from dicom_node.worklist.app import make_app
from dicom_node.worklist.pages import filters
from tests.servers import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dicom_node.worklist.accounts import Accounts
    from dicom_node.worklist.listing import Filters

_AIM_MS = 100.0
_PASSWORD = "of the bench 4711"  # noqa: S105 - of a database that nobody keeps
_LOCATIONS = ("ED", "ICU", "Ward 1", "Ward 2", "Ward 3", "Ward 4", "Ward 5", "Outpatients", "Surgery", "Oncology",
              "Paediatrics", "Occupational health")  # fmt: skip
_FAMILIES = ("Smith Miller Schmidt Weber Wagner Becker Hoffmann Koch Richter Klein Wolf Schneider Neumann Schwarz "
             "Zimmermann Braun Krueger Hartmann Lange Werner Krause Lehmann Koehler Maier Huber Kaiser Fuchs Peters "
             "Lang Scholz Moeller Weiss Jung Hahn Schubert Vogel Friedrich Keller Guenther Frank Berger Winkler Roth "
             "Beck Lorenz Baumann Franke Albrecht Schuster Simon Ludwig Boehm Winter Kraus Martin")  # fmt: skip
_GIVEN = ("Anna Maria Peter Hans Ursula Karin Helga Michael Thomas Andreas Wolfgang Klaus Monika Petra Sabine Renate "
          "Jan Stefan Christian Martin Markus Julia Laura Lena Sophie Paul Felix Jonas Leon Emma")  # fmt: skip

# Statements of one ledger. Ids follow the times of arrival, as they do in a node; the newest studies are those in work;
# a fifth of the studies has a second film, half of those a lateral one that is declined. Family names are as uneven as
# they are in a town: the square of a uniform number chooses.
_FILL = (
    """
    INSERT INTO releases (bundle, release, manifest, active, registered_at)
    VALUES ('bench', '1', '{}', true, now()) RETURNING id
    """,
    """
    CREATE UNLOGGED TABLE bench AS
    SELECT n, 'P' || (n * 7919::bigint %% 1000003) AS pid, 'A' || lpad(n::text, 9, '0') AS accession,
           (%(families)s::text[])[1 + floor(power(random(), 2) * %(family_count)s)] || CASE WHEN random() < 0.7
               THEN (ARRAY['', 'er', 'mann', 'son', 'ski', 'berg', 'feld', 'hof', 'bach', 'stein'])
                    [1 + floor(random() * 10)] ELSE '' END AS family,
           (%(given)s::text[])[1 + floor(random() * %(given_count)s)] AS given,
           now() - interval '365 days'
               + interval '1 day' * (floor(f) + (f - floor(f)) + 0.9 * sin(2 * pi() * f) / (2 * pi())) AS came,
           (%(locations)s::text[])[1 + floor(power(random(), 1.5) * %(location_count)s)] AS location,
           CASE WHEN random() < 0.4 THEN 'CR' ELSE 'DX' END AS modality,
           CASE WHEN left_over < 40 THEN 'waiting' WHEN left_over < 44 THEN 'claimed'
                WHEN left_over < 52 THEN 'predicted' WHEN left_over < 64 THEN 'reported'
                WHEN random() < 0.004 THEN 'failed' WHEN random() < 0.04 THEN 'declined'
                WHEN random() < 0.03 THEN 'withheld' ELSE 'delivered' END AS state,
           0.5 + random() / 2 AS probability, random() < 0.12 AS may_flag, random() < %(read)s AS was_read
    FROM (SELECT n, n * 365.0 / %(studies)s AS f, %(studies)s - n AS left_over
          FROM generate_series(1, %(studies)s) AS n) AS numbers
    """,
    "ALTER TABLE bench ADD COLUMN flagged boolean",
    "UPDATE bench SET flagged = may_flag AND state IN ('delivered', 'withheld', 'reported', 'predicted')",
    """
    INSERT INTO studies (study_instance_uid, arrived_at, acquired_at, due_at, flagged, probability, modality, location,
                         study_date, patient_id, patient_name, accession_number, read_at, read_by)
    SELECT '1.2.826.0.1.3680043.10.543.' || n, came, came - interval '5 minutes',
           CASE WHEN flagged THEN came - interval '4 hours' * (0.75 + 0.25 * probability) ELSE came END,
           flagged, CASE WHEN flagged THEN probability END, modality, location, to_char(came, 'YYYYMMDD'), pid,
           family || '^' || given, accession, CASE WHEN was_read THEN came + interval '1 hour' END,
           CASE WHEN was_read THEN 'bench' END
    FROM bench ORDER BY n
    """,
    """
    INSERT INTO study_words (word, study_id)
    SELECT lower(word), s.id FROM bench JOIN studies s ON s.study_instance_uid = '1.2.826.0.1.3680043.10.543.' || n,
           unnest(ARRAY[family, given, pid, accession]) AS word ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO instances (sop_instance_uid, sop_class_uid, study_instance_uid, series_instance_uid,
                           transfer_syntax_uid, sha256, size_bytes, path, calling_ae_title, modality, view, body_part,
                           evidence, notes, patient_id, patient_name, accession_number, study_date, received_at)
    SELECT '1.2.826.0.1.3680043.10.543.' || n || '.1.' || image, '1.2.840.10008.5.1.4.1.1.1',
           '1.2.826.0.1.3680043.10.543.' || n, '1.2.826.0.1.3680043.10.543.' || n || '.1', '1.2.840.10008.1.2.1',
           repeat(md5(n || '.' || image), 2), 10000000, 'aa/' || repeat(md5(n || '.' || image), 2) || '.dcm',
           'MODALITY', modality, CASE image WHEN 1 THEN 'PA' ELSE 'lateral' END, 'chest', '["ViewPosition"]', '[]',
           pid, family || '^' || given, accession, to_char(came, 'YYYYMMDD'), came
    FROM bench, LATERAL generate_series(1, CASE WHEN n %% 5 = 0 THEN 2 ELSE 1 END) AS image ORDER BY n, image
    """,
    """
    INSERT INTO screenings (instance_id, release_id, purpose, state, reason, attempt, failures)
    SELECT i.id, (SELECT max(id) FROM releases), 'live',
           CASE WHEN second THEN 'declined' ELSE b.state END,
           CASE WHEN second THEN 'lateral' WHEN b.state = 'declined' THEN 'not_frontal'
                WHEN b.state = 'failed' THEN 'decoding' END, 1, 0
    FROM bench b JOIN instances i ON i.study_instance_uid = '1.2.826.0.1.3680043.10.543.' || n,
         LATERAL (SELECT n %% 10 = 0 AND i.view = 'lateral' AS second) AS which ORDER BY i.id
    """,
    """
    INSERT INTO outcomes (screening_id, target, position, operating_point, probability, threshold, flagged, decision)
    SELECT s.id, target, place - 1, 'balanced', CASE WHEN flags THEN b.probability ELSE 0.1 END, 0.5, flags,
           CASE WHEN flags THEN 'flagged' ELSE 'not_flagged' END
    FROM bench b JOIN instances i ON i.study_instance_uid = '1.2.826.0.1.3680043.10.543.' || n
         JOIN screenings s ON s.instance_id = i.id AND s.state IN ('delivered', 'withheld', 'reported', 'predicted'),
         unnest(ARRAY['pneumonia', 'tuberculosis', 'abnormal']) WITH ORDINALITY AS targets (target, place),
         LATERAL (SELECT b.flagged AND place IN (1, 3) AS flags) AS which
    """,
    "DROP TABLE bench",
)


class Kind(NamedTuple):
    """One way to ask; `urls` gives as many as one wants."""

    name: str
    urls: Iterator[str]
    asked: Filters


class Bench:
    """A filled ledger and a browser that is logged in."""

    def __init__(self, database: Database, client: TestClient, rows: list[Any]) -> None:
        self.database = database
        self.client = client
        self._rows = rows
        self._chance = random.Random(1)  # noqa: S311 - nothing secret

    def kinds(self) -> Iterator[Kind]:
        """All that is measured."""
        for path in ("/worklist", "/worklist/rows", "/api/v1/worklist"):
            yield self._kind(f"{path}: first page", {}, path, depths=(0,))
            yield self._kind(f"{path}: any page", {}, path, depths=(1,))
            yield self._kind(f"{path}: last page", {}, path, depths=(2,))
        yield self._kind("read", {"read": "read"})
        yield self._kind("read and unread", {"read": "all"})
        alone = dict[str, dict[str, str]]()
        for value in ("yes", "no"):
            alone[f"flagged: {value}"] = {"flagged": value}
        for location in _LOCATIONS:
            alone[f"location: {location}"] = {"location": location}
        for modality in ("CR", "DX"):
            alone[f"modality: {modality}"] = {"modality": modality}
        for state in State:
            alone[f"state: {state}"] = {"state": state}
        for name, filtered in alone.items():
            yield self._kind(name, filtered)
        changing: dict[str, Callable[[Any], dict[str, str]]] = {
            "day": lambda row: {"day": row.arrived_at.date().isoformat()},
            "text: patient's ID": lambda row: {"text": row.patient_id},
            "text: accession number": lambda row: {"text": row.accession_number},
            "text: beginning of a family name": lambda row: {"text": row.patient_name[:5]},
            "text: whole name": lambda row: {"text": row.patient_name},
            "text: two letters": lambda row: {"text": row.patient_name[:2]},
            "text: two letters and two": lambda row: {
                "text": f"{row.patient_name[:2]} {row.patient_name.partition('^')[2][:2]}"
            },
            "text: found nowhere": lambda row: {"text": f"zzz{row.id}"},
        }
        for name, chosen in changing.items():
            yield self._kind(name, chosen)
        for name, filtered in (
            ("flagged and location", {"flagged": "yes", "location": "ICU"}),
            ("flagged and rare location", {"flagged": "yes", "location": _LOCATIONS[-1]}),
            ("flagged and modality", {"flagged": "yes", "modality": "CR"}),
            ("flagged and delivered", {"flagged": "yes", "state": "delivered"}),
            ("flagged and failed", {"flagged": "yes", "state": "failed"}),
            ("rare location and modality", {"location": _LOCATIONS[-1], "modality": "CR"}),
            ("rare location and failed", {"location": _LOCATIONS[-1], "state": "failed"}),
            ("rare location and waiting", {"location": _LOCATIONS[-1], "state": "waiting"}),
            ("flagged and two letters", {"flagged": "yes", "text": "sc"}),
            ("rare location and two letters", {"location": _LOCATIONS[-1], "text": "sc"}),
            ("failed and two letters", {"state": "failed", "text": "sc"}),
            ("read, and a rare location", {"read": "read", "location": _LOCATIONS[-1]}),
            ("read, and flagged", {"read": "read", "flagged": "yes"}),
            ("read, and two letters", {"read": "read", "text": "sc"}),
            ("read and unread, failed", {"read": "all", "state": "failed"}),
        ):
            yield self._kind(name, filtered)
        yield self._kind("day and flagged", lambda row: {"day": row.arrived_at.date().isoformat(), "flagged": "yes"})
        yield self._kind("day and two letters", lambda row: {"day": row.arrived_at.date().isoformat(), "text": "sc"})

    def _kind(
        self,
        name: str,
        filtered: dict[str, str] | Callable[[Any], dict[str, str]],
        path: str = "/worklist",
        depths: tuple[int, ...] = (0, 1),
    ) -> Kind:
        def urls() -> Iterator[str]:
            while True:
                for depth in depths:
                    query = filtered(self._chance.choice(self._rows)) if callable(filtered) else dict(filtered)
                    if depth:
                        row = self._chance.choice(self._rows) if depth == 1 else self._rows[-1]
                        query["after"] = listing.Cursor(row.due_at, row.id).as_text()
                    yield f"{path}?{urlencode(query)}"

        asked = filtered(self._chance.choice(self._rows)) if callable(filtered) else filtered
        whole = dict.fromkeys(("day", "location", "modality", "flagged", "state", "text"), "") | {"read": "unread"}
        return Kind(name, urls(), filters(**(whole | asked)))

    def took_ms(self, url: str) -> float:
        """How long the application takes to answer."""
        began = time.perf_counter()
        answer = self.client.get(url)
        seconds = time.perf_counter() - began
        if answer.status_code != 200:
            raise SystemExit(f"{url}: {answer.status_code} {answer.text[:200]}")
        return seconds * 1e3

    def counted(self, asked: Filters) -> tuple[int, float]:
        """What stands above the list, and in how many ms it is counted."""
        began = time.perf_counter()
        found = listing.count(self.database, asked, UTC)
        return found, (time.perf_counter() - began) * 1e3


def fill(dsn: str, studies: int, read: float) -> None:
    """The ledger holds so many studies, that share of them read."""
    values = {
        "studies": studies,
        "read": read,
        "families": _FAMILIES.split(),
        "family_count": len(_FAMILIES.split()),
        "given": _GIVEN.split(),
        "given_count": len(_GIVEN.split()),
        "locations": list(_LOCATIONS),
        "location_count": len(_LOCATIONS),
    }
    with psycopg.connect(dsn) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SELECT setseed(0.5)")
        for statement in _FILL:
            cursor.execute(statement, values)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("studies", "study_words", "instances", "screenings", "outcomes"):
            connection.execute(f"VACUUM ANALYZE {table}")


def logged_in(client: TestClient, accounts: Accounts) -> None:
    """The client's browser is that of an administrator."""
    link = accounts.first_link()
    if link is None:
        raise SystemExit("the database was not empty")
    accounts.redeem(link, "bench", _PASSWORD)
    form = client.get("/").text.partition('name="form" value="')[2].partition('"')[0]
    client.post("/log-in", data={"name": "bench", "password": _PASSWORD, "form": form})
    if client.get("/worklist", follow_redirects=False).status_code != 200:
        raise SystemExit("the log-in was refused")


def bare_ms(dsn: str, rows: list[Any], times: int) -> float:
    """Median of a bare SELECT of fifty unread studies, from a random one on."""
    chance, took = random.Random(2), []  # noqa: S311 - nothing secret
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(times):
            row = chance.choice(rows)
            began = time.perf_counter()
            connection.execute(
                "SELECT * FROM studies WHERE read_at IS NULL AND (due_at, id) > (%s, %s) ORDER BY due_at, id LIMIT 50",
                (row.due_at, row.id),
            ).fetchall()
            took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def some_rows(dsn: str) -> list[Any]:
    """Studies from all over the worklist; the last of them is the twentieth from its end."""
    columns = "id, due_at, arrived_at, patient_id, patient_name, accession_number"
    by_chance = f"SELECT {columns} FROM studies WHERE read_at IS NULL ORDER BY random() LIMIT 2000"  # noqa: S608
    last = f"SELECT {columns} FROM studies WHERE read_at IS NULL ORDER BY due_at DESC, id DESC OFFSET 20 LIMIT 1"  # noqa: S608
    with psycopg.connect(dsn, row_factory=psycopg.rows.namedtuple_row) as connection:
        return [*connection.execute(by_chance), *connection.execute(last)]


def p95(took: list[float]) -> float:
    """What 95 of a hundred do not exceed."""
    ordered = sorted(took)
    return ordered[-(-len(ordered) * 95 // 100) - 1]


def measure(dsn: str, studies: int, read: float, times: int) -> float:
    """Fills, asks and prints; the p95 of all answers, in ms."""
    database = Database(dsn)
    database.upgrade()
    began = time.perf_counter()
    fill(dsn, studies, read)
    print(f"{studies:,} studies, {read:.0%} of them read: filled in {time.perf_counter() - began:.0f} s", flush=True)  # noqa: T201
    rows = some_rows(dsn)
    every: list[float] = []
    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(database):
        settings = Settings(database_url=dsn, archive_dir=Path(folder))
        app = make_app(settings, database, None)  # type: ignore[arg-type] - no picture is asked for
        app.state.site = UTC
        with TestClient(app) as client:
            logged_in(client, app.state.accounts)
            bench = Bench(database, client, rows)
            for path in ("/worklist", "/worklist/rows", "/api/v1/worklist"):
                for _ in range(20):  # statements are known, templates compiled
                    bench.took_ms(path)
            bare = bare_ms(dsn, rows, 10 * times)
            gc.collect()
            print(f"{'':40}     p50      p95   of bare   count is   in (p50)", flush=True)  # noqa: T201
            for kind in bench.kinds():
                took = [bench.took_ms(next(kind.urls)) for _ in range(times)]
                counts = [bench.counted(kind.asked) for _ in range(5)]
                every += took
                worst[kind.name] = p95(took)
                count = "> 1,000" if counts[0][0] > listing.MOST_COUNTED else f"{counts[0][0]}"
                print(  # noqa: T201
                    f"{kind.name:40} {statistics.median(took):7.1f}  {p95(took):7.1f}  "
                    f"{statistics.median(took) / bare:8.1f}  {count:>9}  "
                    f"{statistics.median(took for _, took in counts):9.1f}",
                    flush=True,
                )
    over = [name for name, found in worst.items() if found > _AIM_MS]
    print(  # noqa: T201
        f"{len(every):,} answers of {len(worst)} kinds: p50 {statistics.median(every):.1f} ms, "
        f"p95 {p95(every):.1f} ms, the longest {max(every):.0f} ms; a bare SELECT of 50: {bare:.2f} ms\n"
        f"kinds whose own p95 is above {_AIM_MS:.0f} ms: {', '.join(over) or 'none'}",
        flush=True,
    )
    return p95(every)


def main() -> None:
    """Prints a line for each way to ask, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--read", type=float, default=0.0, help="the share of studies that were read")
    parser.add_argument("--times", type=int, default=40, help="how often each way to ask is measured")
    parser.add_argument("--database", help="an empty PostgreSQL database; without it a server is started")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        dsn = asked.database or stack.enter_context(PostgresServer()).dsn()
        took = measure(dsn, asked.studies, asked.read, asked.times)
    sys.exit(took > _AIM_MS)


if __name__ == "__main__":
    main()
