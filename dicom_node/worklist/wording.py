"""How values are worded on the pages: names, times, states. What senders wrote is shown inert, and never at length."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dicom_node.domain import State

if TYPE_CHECKING:
    from datetime import tzinfo

_STATES = {
    State.WAITING: "waiting",
    State.CLAIMED: "screening",
    State.PREDICTED: "screening",
    State.REPORTED: "sending",
    State.DELIVERED: "delivered",
    State.WITHHELD: "screened",
    State.DECLINED: "declined",
    State.FAILED: "failed",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def shown(text: Any, most: int = 64) -> str:
    """The text without control and formatting characters, which could hide or turn what stands beside it; cut."""
    seen = " ".join(inert(str(text or "")[: 4 * most]).split())
    return seen if len(seen) <= most else seen[: most - 1] + "…"


def inert(text: str) -> str:
    """The text with a space for each control and formatting character."""
    return "".join(one if unicodedata.category(one)[0] != "C" else " " for one in text)


def person_name(text: str | None) -> str:
    """A Person Name (PS3.5 6.2.1) as people write it: family name, given names."""
    group = next((one for one in (text or "").split("=") if one.strip("^ ")), "")  # alphabetic, else as it is written
    family, _, given = group.partition("^")
    return shown(", ".join(filter(None, (shown(family), shown(given.replace("^", " "))))))


def ago(at: datetime | None) -> str:
    """How long ago, in the largest unit that fits."""
    if at is None:
        return ""
    seconds = (datetime.now(UTC) - at).total_seconds()
    if seconds < -_MINUTE:
        return "to come"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return "now"


def local(at: datetime | None, site: tzinfo) -> str:
    """A time as the site's clocks show it."""
    return "" if at is None else f"{at.astimezone(site):%Y-%m-%d %H:%M:%S}"


def day(date: str | None) -> str:
    """A DA value as a day."""
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if date and len(date) == 8 and date.isdigit() else ""


def percent(probability: float | None) -> str:
    """A probability as people compare it."""
    return "" if probability is None else f"{100 * probability:.0f} %"


def standing(state: State | None) -> str:
    """A state in one word."""
    return "purged" if state is None else _STATES[State(state)]


def words(code: Any) -> str:
    """A word of the program as people read it."""
    return shown(str(code or "").replace("_", " "))


FILTERS = {
    "shown": shown,
    "person_name": person_name,
    "ago": ago,
    "local": local,
    "day": day,
    "percent": percent,
    "standing": standing,
    "words": words,
}
