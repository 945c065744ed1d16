"""The day that the clock of a chat template may have said, as far as a client can tell.

A template's `strftime_now` writes the local day of the server as a request comes in. A server says its time with each
answer (HTTP's `Date`, RFC 9110, 6.6.1), in UTC, and never its zone. So two are taken into account: UTC, which
containers keep, and the zone of this machine, which may be the server's too. Where both leave one day, it is that one.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

OR = " or "  # between the days of an answer that may have been given on either
_ROUNDED = 1.0  # seconds


def days_of(told: str | None, seconds: float) -> frozenset[str]:
    """The days (ISO) that it may have been at a server that took `seconds` and told this `Date`, if any."""
    try:
        return _days(parsedate_to_datetime(told or ""), seconds)
    except (ValueError, OverflowError):  # no date, or none that every zone has
        return _days(datetime.now(UTC), seconds)


def _days(answered: datetime, seconds: float) -> frozenset[str]:
    moments = (answered - timedelta(seconds=seconds + _ROUNDED), answered + timedelta(seconds=_ROUNDED))
    return frozenset(moment.astimezone(zone).date().isoformat() for moment in moments for zone in (UTC, None))
