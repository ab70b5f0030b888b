"""The worklist's pages in a real browser that is driven, with all that a page does beside what it should."""

import itertools
import warnings
from datetime import UTC, datetime
from types import SimpleNamespace

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from dicom_node.config import load
from dicom_node.demo.instances import phantom_dataset
from dicom_node.upgrade import set_threshold
from dicom_node.worklist.accounts import Accounts, Role
from tests.e2e.harness import dcmsend, wait_until

PASSWORD = "correct horse battery"  # noqa: S105 - of the tests' own people
TIMEOUT_MS = 20_000
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
_THRESHOLDS = {True: 0.01, False: 0.99}  # between which every answer of the random networks lies
_names = itertools.count(1)

expect.set_options(timeout=TIMEOUT_MS)


class Window:
    """One person's browser window, apart from all others, and what its pages did beside what they should.

    Parameters
    ----------
    session
        The cookie of who is logged in; nobody is without it.
    options
        Of the browser's context, such as `viewport`.
    """

    def __init__(self, browser, url, session=None, **options):
        self.url = url
        self.complaints, self.requests, self.dialogs = [], [], []
        self._refused = set()
        self.context = browser.new_context(base_url=url, **options)
        self.context.set_default_timeout(TIMEOUT_MS)
        if session is not None:
            self.context.add_cookies([{"name": "cxr", "value": session, "url": url}])
        self.context.on("console", self._complain)
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append((str(error), "")))
        self.page.on("dialog", self._dismiss)

    def _complain(self, message):
        if message.type == "error":
            self.complaints.append((message.text, message.location["url"]))

    def _dismiss(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def goto(self, path, status=200):
        """The page is there, answered as expected; a browser complains of what is refused."""
        answer = self.page.goto(path)
        assert answer.status == status, path
        if status >= 400:
            self._refused.add(answer.url)
        return self.page

    def expect_refusal(self, path):
        """The next form is refused, and the browser will complain of it."""
        self._refused.add(self.url + path)

    def find(self, selector, **options):
        return self.page.locator(selector, **options)

    def row(self, study):
        """The study's line in the worklist."""
        return self.find(f'tr[data-uid="{study}"]')

    def mark(self):
        """From now on `is_same` tells whether the document was loaded anew."""
        self.page.evaluate("window.mark = true")

    @property
    def is_same(self):
        return self.page.evaluate("window.mark === true")

    def grey_values(self):
        """A sum over what the viewer's canvas shows."""
        return self.page.evaluate(
            """() => {
                const canvas = document.querySelector("canvas.xray");
                const seen = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                let sum = 0;
                for (let at = 0; at < seen.length; at += 4) sum += seen[at];
                return sum;
            }"""
        )

    def await_viewer(self):
        self.find(".viewer[data-ready=true]").wait_for()

    def barriers(self):
        """What axe-core finds that keeps people out: serious or critical."""
        found = Axe().run(self.page).response["violations"]
        return [
            (one["id"], one["impact"], [node["target"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    def expect_quiet(self):
        """No complaint, no dialog, and nobody was asked but the node."""
        complaints = [one for one in self.complaints if one[1] not in self._refused]
        assert not complaints, complaints
        assert not self.dialogs, self.dialogs
        abroad = [url for url in self.requests if not url.startswith((f"{self.url}/", f"blob:{self.url}/"))]
        assert not abroad, abroad

    def close(self):
        self.context.close()


class Site:
    """A running node with its worklist, the people who use it, and the films that are sent to it."""

    def __init__(self, node, url, folder):
        self.node = node
        self.url = url
        self._folder = folder
        self._settings = load(node.config)
        self._flags = None
        self._sessions = {}

    @property
    def accounts(self):
        return Accounts(self.node.database)

    def session(self, role):
        """The cookie of one person of that role, who is made where there is none."""
        if role not in self._sessions:
            name = f"a {role}"
            accounts = self.accounts
            if (token := accounts.first_link()) is not None:
                accounts.redeem(token, "first", PASSWORD)
            accounts.redeem(accounts.invite(name, Role(role), "first"), name, PASSWORD)
            self._sessions[role] = accounts.sign_in(name, PASSWORD, "127.0.0.1")[0]
        return self._sessions[role]

    def send(self, *, flagged=False, number=0, **changed):
        """A study of one film, stored by DCMTK and screened; `name` is a word by which no other study is found."""
        if flagged is not self._flags:
            set_threshold(self._settings, "covid19", _THRESHOLDS[flagged], set_by="test", basis="test")
            self._flags = flagged
        count = next(_names)
        name = f"FILM{count:03d}"
        ds = phantom_dataset(number, fresh_uids=True)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName, ds.PatientID, ds.AccessionNumber = f"{name}^TEST", f"ID{count:03d}", f"A{count:03d}"
        ds.AcquisitionDate, ds.AcquisitionTime = f"{datetime.now(UTC):%Y%m%d %H%M%S}".split()
        path = self._folder / f"{count}.dcm"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that DICOM forbids
            for keyword, value in changed.items():
                setattr(ds, keyword, value)
            ds.save_as(path, enforce_file_format=True)
        status, told = dcmsend(self.node.port, path)
        assert status == 0, told
        path.unlink()
        wait_until(lambda: self.state(ds) not in (None, "waiting", "claimed", "predicted"), what="its screening")
        return SimpleNamespace(uid=str(ds.StudyInstanceUID), name=name, image=str(ds.SOPInstanceUID))

    def state(self, ds):
        summary = self.node.ledger.summary(str(ds.SOPInstanceUID))
        return summary and summary.state
