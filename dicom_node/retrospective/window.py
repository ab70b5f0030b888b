"""When a run may fetch: the site's nights, and what else speaks against it. Pure: the time is a value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from dicom_node.config import Retrospective

_DAY, _MINUTE = timedelta(days=1), timedelta(minutes=1)
_GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Night:
    """One opening of the window, from `opens_at` until `closes_at` (UTC).

    Attributes
    ----------
    day
        The site's date when it opens.
    """

    day: date
    opens_at: datetime
    closes_at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger says of the moment.

    Attributes
    ----------
    rests_until, fault
        A pause for the peer's sake, and what made it.
    held_bytes
        Fetched images in the archive, of all runs.
    waiting_images
        Images of runs that no worker has screened yet.
    """

    rests_until: datetime | None
    fault: str | None
    held_bytes: int
    waiting_images: int


def night(now: datetime, settings: Retrospective) -> Night | None:
    """The opening of the window in which `now` lies; None where it is closed.

    Nights neither overlap nor are left out at a change of the clock: each edge is one moment. Where the clock shows it
    twice that is the first, and where it leaves it out, the moment at which it does.
    """
    today = now.astimezone(ZoneInfo(settings.time_zone)).date()
    for day in (today, today - _DAY):
        found = _of_day(day, settings)
        if found.opens_at <= now < found.closes_at:
            return found
    return None


def opens_next(now: datetime, settings: Retrospective) -> datetime:
    """When the window, which is closed, opens."""
    today = now.astimezone(ZoneInfo(settings.time_zone)).date()
    return next(
        opens_at for number in range(3) if (opens_at := _of_day(today + number * _DAY, settings).opens_at) > now
    )


def _of_day(day: date, settings: Retrospective) -> Night:
    opens, closes = (time.fromisoformat(edge) for edge in (settings.window or "00:00-00:00").split("-"))
    last = day if opens < closes else day + _DAY
    zone = ZoneInfo(settings.time_zone)
    return Night(day, _moment(day, opens, zone), _moment(last, closes, zone))


def _moment(day: date, shown: time, zone: ZoneInfo) -> datetime:
    """As UTC: two times of one zone would be compared as their clock faces."""
    moment = datetime.combine(day, shown, zone).astimezone(UTC)
    local = moment.astimezone(zone)
    if local.time() != shown:  # the clock never shows it
        while (moment - _MINUTE).astimezone(zone).utcoffset() == local.utcoffset():
            moment -= _MINUTE
    return moment


def days_due(opened: Night, last: date | None, settings: Retrospective) -> list[date]:
    """The days whose studies a nightly run takes in this night: the day before, and those that were missed.

    `last` is the latest day that was taken; without one, nothing was missed.
    """
    yesterday = opened.day - _DAY
    first = yesterday if last is None else max(last + _DAY, opened.day - settings.catch_up_days * _DAY)
    return [first + number * _DAY for number in range((yesterday - first).days + 1)]


def why_it_rests(now: datetime, settings: Retrospective, standing: Standing) -> str | None:
    """Why a run fetches nothing now; None where it is due."""
    if night(now, settings) is None:
        opens_at = opens_next(now, settings).astimezone(ZoneInfo(settings.time_zone))
        return f"outside the window {settings.window} {settings.time_zone}; it opens at {opens_at:%Y-%m-%d %H:%M}"
    if standing.rests_until is not None and now < standing.rests_until:
        until = standing.rests_until.astimezone(ZoneInfo(settings.time_zone))
        return f"a pause for the PACS's sake until {until:%H:%M:%S}: {standing.fault}"
    if standing.held_bytes >= settings.held_gb * _GB:
        held = standing.held_bytes / _GB
        return f"{held:.2f} GB of fetched images are in the archive, and held_gb = {settings.held_gb:g}"
    if standing.waiting_images >= settings.waiting_images:
        return f"{standing.waiting_images} fetched images wait for a worker"
    return None


def hours_of_window(settings: Retrospective) -> float:
    """Hours of a day on which the clock is not changed."""
    found = _of_day(date(2001, 1, 1), settings)
    return (found.closes_at - found.opens_at) / timedelta(hours=1)
