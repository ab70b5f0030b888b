"""Pictures of every page of the worklist for docs/: drawn films, invented names, dark and light, desk and phone.

python -m benchmarks.worklist_pictures docs
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import sync_playwright

from dicom_node.bundle import find_bundle
from dicom_node.database import Database
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import OrthancPacs, free_port
from dicom_node.domain import State
from dicom_node.worklist.accounts import Accounts, Role
from tests.browser import PROGRAMS
from tests.e2e.harness import Node, dcmsend, destination, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = (
    "ROE^ALEXANDRA",
    "MÜLLER^JÖRG",
    "OKAFOR^CHIDI",
    "GARCÍA LÓPEZ^MARÍA",
    "NGUYEN^VAN AN",
    "O'BRIEN^PAT",
    "SMITH^JO",
)
PLACES = ("Emergency", "Ward 3", "Emergency", "ICU", "Outpatients", "Ward 3", "Emergency")
PASSWORD = "drawn films and invented names"  # noqa: S105 - of nobody
SCREENS = (("dark", 1280, 860), ("light", 1280, 860), ("dark", 390, 860), ("light", 390, 860))
GAP, PAGE_COLOUR = 24, (128, 136, 145)


def main() -> None:
    """`FOLDER/worklist.png` and one picture a page in `FOLDER/worklist/`."""
    docs = Path(sys.argv[1])
    (docs / "worklist").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, OrthancPacs(Path(name) / "orthanc") as pacs:
        folder = Path(name)
        silent = {
            "name": "archive",
            "ae_title": "ARCHIVE",
            "host": "127.0.0.1",
            "port": free_port(),
            "destination": True,
        }
        node = Node(
            folder / "node",
            destination(pacs),
            silent,
            bundle=str(find_bundle("starter")),
            web={"port": free_port()},
            worklist={"viewer_url": "https://pacs.example/viewer?study={study_instance_uid}"},
        )
        try:
            node.start()
            _send(node, folder)
            with closing(node.database):
                _take(node, docs)
        finally:
            node.stop()


def _send(node: Node, folder: Path) -> None:
    uids = []
    for number, (name, place) in enumerate(zip(NAMES, PLACES, strict=True)):
        ds = phantom_dataset(number, fresh_uids=True)
        taken = datetime.now(UTC) - timedelta(minutes=3 + 8 * (len(NAMES) - number))
        ds.SpecificCharacterSet, ds.TimezoneOffsetFromUTC = "ISO_IR 192", "+0000"
        ds.PatientName, ds.PatientID, ds.AccessionNumber = name, f"DRAWN-{number:03d}", f"A{20260 + number}"
        ds.CurrentPatientLocation = place
        ds.AcquisitionDate, ds.AcquisitionTime = f"{taken:%Y%m%d}", f"{taken:%H%M%S}"
        ds.save_as(folder / "film.dcm", enforce_file_format=True)
        code, told = dcmsend(node.port, folder / "film.dcm")
        if code:
            raise SystemExit(told)
        uids.append(str(ds.SOPInstanceUID))
    done = (State.REPORTED, State.DELIVERED)
    wait_until(lambda: all(node.ledger.summary(uid).state in done for uid in uids), timeout_s=120, what="the results")


def _take(node: Node, docs: Path) -> None:
    base = re.search(r"the worklist is at (\S+)", node.log.read_text())[1]
    accounts = Accounts(Database(node.database.url))
    accounts.redeem(accounts.first_link() or "", "chief", PASSWORD)
    for name, role in (("dr.reader", Role.READER), ("technologist", Role.OPERATOR)):
        accounts.redeem(accounts.invite(name, role, "chief"), name, PASSWORD)
    invitation = accounts.invite("somebody new", Role.READER, "chief")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, PROGRAMS))), args=["--no-sandbox"]
        )
        context = browser.new_context()
        page = context.new_page()
        page.goto(base)
        page.fill("[name=name]", "chief")
        page.fill("[name=password]", PASSWORD)
        page.click("button.main")
        page.wait_for_selector("#rows")
        study = page.locator("a.open").first.get_attribute("href")
        page.goto(base + study)
        page.check("input[value=agree]")
        page.fill("textarea", "Seen with the film of last week.")
        page.click(".feedback button")
        state = context.storage_state()
        context.close()
        for name, path in (
            ("log-in", "/"),
            ("welcome", f"/welcome/{invitation}"),
            ("worklist", "/worklist"),
            ("study", study),
            ("operations", "/operations"),
            ("people", "/people"),
            ("account", "/account"),
        ):
            known = None if name in ("log-in", "welcome") else state
            pictures = [_picture(browser, base + path, known, *screen) for screen in SCREENS]
            _side_by_side(pictures).save(docs / "worklist" / f"{name}.png", optimize=True)
            if name == "worklist":
                _side_by_side(pictures[:1] + pictures[3:]).save(docs / "worklist.png", optimize=True)
        browser.close()


def _picture(browser: Browser, url: str, state: object, scheme: str, width: int, height: int) -> Image.Image:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}, storage_state=state)
    page: Page = context.new_page()
    page.goto(url, wait_until="networkidle" if "/worklist" not in url else "load")
    if page.locator(".viewer").count():
        page.wait_for_selector(".viewer[data-ready=true]")
        page.keyboard.press("2")
    page.wait_for_timeout(700)
    taken = Image.open(BytesIO(page.screenshot()))
    context.close()
    return taken.convert("RGB")


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """The pictures at half size in a row, in at most 256 colours."""
    small = [
        picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS) for picture in pictures
    ]
    width = sum(picture.width for picture in small) + GAP * (len(small) + 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in small) + 2 * GAP), PAGE_COLOUR)
    left = GAP
    for picture in small:
        sheet.paste(picture, (left, GAP))
        left += picture.width + GAP
    return sheet.quantize(256, kmeans=2)


if __name__ == "__main__":
    main()
