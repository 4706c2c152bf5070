"""What must not leave the run folder: credentials in addresses, names of patients."""

from __future__ import annotations

import hashlib
import re

_SECRET = "(?:token|key|secret|password|sig)"


def without_credentials(url: str) -> str:
    """`url` without user name, password and token-like query values."""
    if "://" not in url:
        return re.sub(r"^[^@/\\]+@", "", url)  # scp-like git remotes: user@host:path
    # Not by urlsplit and urlunsplit, which lose slashes of sqlite:////path.
    bare = re.sub(r"://[^/?#]*@", "://", url, count=1)
    return re.sub(rf"(?i)([?&][^=&]*{_SECRET}[^=&]*)=[^&#]*", r"\1=***", bare)


def scrubbed(text: str) -> str:
    """A message of someone else's without the credentials of the addresses in it."""
    text = re.sub(r"[A-Za-z][\w+.\-]*://[^\s'\"<>]+", lambda m: without_credentials(m[0]), text)
    # HTTP libraries also print the path and query alone.
    return re.sub(rf"(?i)([?&][^=&\s]*{_SECRET}[^=&\s]*)=[^&\s'\")]*", r"\1=***", text)


def alias(name: str) -> str:
    """A short stable stand-in for a patient or slide name in reports and tracking."""
    return hashlib.sha256(name.encode()).hexdigest()[:8]
