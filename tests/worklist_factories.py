"""The worklist's application over a ledger with studies in every state, and browsers that are no more than requests."""

import shutil
import warnings
from contextlib import contextmanager, suppress
from html.parser import HTMLParser

import pytest
from argon2 import PasswordHasher
from fastapi.routing import APIRoute
from sqlalchemy import select

from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.domain import DeliveryState, PixelError
from dicom_node.outbox import Outbox
from dicom_node.tables import Base
from dicom_node.worklist import passwords
from dicom_node.worklist.accounts import Accounts, Role
from dicom_node.worklist.app import make_app
from dicom_node.worklist.tables import AuditRow
from tests.cohort_factories import Night
from tests.ledger_factories import ADMITTED, LATERAL, received, told

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather have another HTTP library
    from starlette.testclient import TestClient

PASSWORD = "correct horse battery"  # noqa: S105 - of the tests' own people
PLAIN = "http://127.0.0.1:8080"
FLAGGED, WAITING, DECLINED, FAILED, HOSTILE, PRIOR = (f"1.3.{number}" for number in range(10, 16))
NAME, PATIENT, ACCESSION = "SECRETNAME^JANE", "SECRETID7", "SECRETACC1"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
BREAKERS = "\"'><svg/onload=alert(3)>\u202egnp.exe\u2066\x1b[2J\x07{{7*7}}"
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Pictures:
    """Stands for the decoded images."""

    def grey(self, path):
        return b"CXRG" + bytes(12)

    def shape(self, path):
        return 64, 48

    def thumbnail(self, path):
        return b"\x89PNG\r\n\x1a\n"


class Site:
    """The application, its ledger, and one person of each role."""

    def __init__(self, folder, database, *, web=None, worklist=None, studies=True):
        self.database = database
        self.night = Night(folder, database)
        self.settings = Settings(
            database_url=database.url,
            archive_dir=folder / "archive",
            health_dir=folder / "health",
            web=web or {},
            worklist=worklist or {},
        )
        self.pictures = Pictures()
        self.app = make_app(self.settings, database, self.pictures)
        self.accounts: Accounts = self.app.state.accounts
        self.base_url = "https://127.0.0.1:8080" if self.settings.web.is_encrypted else PLAIN
        self.clients = []
        if studies:
            self._fill()

    def _fill(self):
        self.come(10, patient_name=NAME, patient_id=PATIENT, accession_number=ACCESSION, location="WARD 3")
        self.night.screen(flagged=True)
        told(self.database, "2.25.7001", ["pacs"])
        outbox = Outbox(self.database, retry_base_s=60, retry_max_s=60)
        for parcel in outbox.claim("deliverer", 10, 60):
            outbox.sent(parcel, 0)
            outbox.proven(parcel, DeliveryState.READ_BACK)
        self.come(12, admission=LATERAL, patient_name="DOE^JOHN")
        self.come(13, patient_name="O'BRIEN^MARY ANN", patient_id="P-13")
        self.night.claims.fail(self.night.claims.claim("worker", 60), PixelError("pixels_broken", "no pixels here"))
        hostile = {
            "patient_name": SCRIPT + BREAKERS,
            "patient_id": BREAKERS[:64],
            "accession_number": '"><b onclick=x>',
            "location": f"{SCRIPT}"[:64],
            "modality": "<i>\"'",
            "study_date": "<u>\u202e\x00'",
            "calling_ae_title": "<s>\u202eAE",
        }
        self.come(14, **hostile)
        self.night.screen(flagged=True)
        self.come(15, **hostile)
        self.come(11, patient_name="MÜLLER^JÖRG", patient_id="P-11", accession_number="ACC11")

    def come(self, number, *, admission=ADMITTED, **changed):
        file = self.night.archive.store(str(number).encode())
        self.night.ledger.record(
            received(
                sop_instance_uid=f"1.2.{number}.1",
                study_instance_uid=f"1.3.{number}",
                sha256=file.sha256,
                file=file if admission.admitted else None,
                admission=admission,
                **changed,
            )
        )

    def name(self, role):
        """The person of that role; made where there is none."""
        name = f"a {role}"
        if name not in {user.name for user in self.accounts.users()}:
            if (first := self.accounts.first_link()) is not None:
                self.accounts.redeem(first, f"a {Role.ADMINISTRATOR}", PASSWORD)
            if role != Role.ADMINISTRATOR:
                self.accounts.redeem(self.accounts.invite(name, Role(role), "a test"), "", PASSWORD)
        return name

    def client(self, role=None, *, token=None, **options):
        """A browser of nobody, or of the person of that role; or a program with that token."""
        options = {"base_url": self.base_url, "follow_redirects": False, "raise_server_exceptions": False} | options
        made = TestClient(self.app, **options)
        self.clients.append(made)
        if role is not None:
            cookie, person = self.accounts.sign_in(self.name(role), PASSWORD, "127.0.0.1")
            made.cookies.set("__Host-cxr" if self.settings.web.is_encrypted else "cxr", cookie)
            made.csrf = person.csrf_token
        if token is not None:
            made.headers["Authorization"] = f"Bearer {token}"
        return made

    def program(self, role):
        return self.client(token=self.accounts.make_token(self.name(role), "a program"))

    def audit(self):
        """Who did what to which study, in order."""
        with self.database.read() as session:
            rows = session.scalars(select(AuditRow).order_by(AuditRow.id))
            return [(row.user_name, row.action, row.study_instance_uid) for row in rows]

    def contents(self):
        """Every row of every table but what a request that changes nothing may leave: the use of a token, log-ins."""
        with self.database.read() as session:
            return {
                name: [tuple(row) for row in session.execute(select(table))]
                for name, table in Base.metadata.tables.items()
                if name not in ("sessions", "login_failures")
            }

    def pristine(self):
        """The folder can be copied: its ledger is closed."""
        for role in Role:
            self.name(role)
        self.database.close()

    def close(self):
        for one in self.clients:
            with suppress(RuntimeError):
                one.close()


def template(folder, empty):
    """A folder with the ledger, archive and people that `of` copies."""
    shutil.copyfile(empty, folder / "ledger.sqlite")
    Site(folder, Database(f"sqlite:///{folder / 'ledger.sqlite'}")).pristine()
    return folder


@contextmanager
def of(template, folder, **options):
    """A site in the folder, on SQLite, with all that the template has."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    database = Database(f"sqlite:///{folder / 'ledger.sqlite'}")
    site = Site(folder, database, studies=False, **options)
    yield site
    site.close()
    database.close()


def routes(app):
    """Each of the application's routes, (path, methods, route), those of the included routers with them."""
    found = []

    def walk(known):
        for route in known:
            if (inner := getattr(route, "original_router", None)) is not None:
                walk(inner.routes)
            else:
                found.append((getattr(route, "path", None), getattr(route, "methods", None), route))

    walk(app.routes)
    return found


def role_of(route):
    """The highest role that the route's dependencies ask for; None where there is none."""
    if not isinstance(route, APIRoute):
        return None
    asked, waiting = [], [route.dependant]
    while waiting:
        one = waiting.pop()
        if (role := getattr(one.call, "role", None)) is not None:
            asked.append(role)
        waiting += one.dependencies
    return max(asked, key=list(Role).index, default=None)


def form_of(client, path="/"):
    """The token of the form there."""
    (own,) = Page(client.get(path).text).all("input", name="form")
    return own["value"]


def log_in(client, name="a reader", password=PASSWORD, **fields):
    """The answer to the form, filled in."""
    form = fields.pop("form", None) or form_of(client)
    return client.post("/log-in", data={"name": name, "password": password, "form": form} | fields)


def ours(caplog):
    """What the node itself wrote to the log."""
    return "\n".join(
        f"{one.getMessage()} {one.exc_text or ''} {one.exc_info or ''}"
        for one in caplog.records
        if not one.name.startswith(("httpx", "httpcore", "asyncio"))
    )


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.parts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.parts.append(data)

    def all(self, tag, **attrs):
        """Of each element of that kind and those attributes, its attributes."""
        return [own for name, own in self.elements if name == tag and attrs.items() <= own.items()]

    @property
    def text(self):
        return " ".join(" ".join(self.parts).split())


@pytest.fixture(autouse=True, name="_quick")
def quick_fixture(monkeypatch):
    """Passwords are hashed at once."""
    monkeypatch.setattr(passwords, "HASHER", QUICK)


@pytest.fixture(scope="module", name="prepared")
def prepared_fixture(tmp_path_factory, sqlite_template):
    """A folder to be copied."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(passwords, "HASHER", QUICK)
        return template(tmp_path_factory.mktemp("worklist"), sqlite_template)


@pytest.fixture(name="site")
def site_fixture(prepared, tmp_path):
    """A site of this test alone, on SQLite."""
    with of(prepared, tmp_path) as found:
        yield found


@pytest.fixture(name="encrypted")
def encrypted_fixture(prepared, tmp_path):
    """The same, reached by TLS."""
    with of(prepared, tmp_path, web={"behind_proxy": True}) as found:
        yield found


@pytest.fixture(name="either")
def either_fixture(database, prepared, tmp_path):
    """A site of this test alone, on both databases."""
    if database.embedded:
        database.close()
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    found = Site(tmp_path, database, studies=not database.embedded)
    yield found
    found.close()
