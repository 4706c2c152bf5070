"""What a tracking store or model registry complains about, in the words of this program."""

from __future__ import annotations

import re

from zoo.privacy import scrubbed

# MLflow's codes of a store that was reached and has no such thing.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
_NO_ADDRESS = ("unsupported URI", "unsupported scheme", "maintenance mode")
_ADDRESSES = "http://HOST:PORT or sqlite:///FILE"
_LONGEST = 300
_AWAY = ("Max retries exceeded", "Connection aborted", "Connection refused", "timed out")
_REASONS = (
    r"\[Errno -?\d+\] ([^'\")\]]+)",
    r"too many (\d+ error responses)",
    r"(timed out)",
    r"(Connection aborted)",
)
# What SQLAlchemy puts behind the reason: the statement and an address to read about it.
_REQUEST = re.compile(r" \[SQL: .*| \(Background on this error at: .*")


def absent(error: BaseException) -> bool:
    """Whether a store was reached and has not got what was asked for.

    Args:
        error: Whatever its libraries raised.
    """
    code = getattr(error, "error_code", "")
    return code in _ABSENT and not any(mark in str(error) for mark in _NO_ADDRESS)


def complaint(error: BaseException) -> str:
    """What a store's libraries say, without credentials and without the request they made.

    Args:
        error: Whatever they raised.
    """
    text = " ".join(str(error).split())
    if any(mark in text for mark in _AWAY):
        found = next((m[1] for p in _REASONS if (m := re.search(p, text))), "")
        return f"cannot be reached: {found.strip()}" if found else "cannot be reached"
    if any(mark in text for mark in _NO_ADDRESS):
        # MLflow gave up stores that are folders of files, and takes x:/ for one.
        return f"is no address of a store; write {_ADDRESSES}"
    return scrubbed(_REQUEST.sub("", text))[:_LONGEST].rstrip(". ")
