"""What must not leave the run folder: credentials in addresses, names of patients."""

from __future__ import annotations

import hashlib
import re

_SECRET = "(?:token|key|secret|password|passwd|pwd|sig|credential)"
# Databases take a password with a slash in it as it is; web addresses end their host there.
_DATABASES = "(?:postgresql|postgres|mysql|mariadb|mssql|oracle|redis|amqp)"
# Tokens that are known by their form wherever they stand.
_KNOWN = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|xox[abp]-[\w-]{16,}|dapi[0-9a-f]{32}|AKIA[0-9A-Z]{16})"
)


def without_credentials(url: str) -> str:
    """`url` without user name, password and token-like query values."""
    if "://" not in url:
        return re.sub(r"^[^@/\\]+@", "", url)  # scp-like git remotes: user@host:path
    # Not by urlsplit and urlunsplit, which lose slashes of sqlite:////path.
    bare = re.sub(r"://[^/?#]*@", "://", url, count=1)
    bare = re.sub(rf"(?i)^({_DATABASES}(?:\+\w+)?://).*@", r"\1", bare, count=1)
    # A password with an unescaped slash; digits after the colon are a port.
    bare = re.sub(r"://[^:/?#@]*:(?!\d+(?:[/?#]|$))[^@]*@", "://", bare, count=1)
    bare = re.sub(rf"(?i)([?&;][^=&;]*{_SECRET}[^=&;]*)=[^&;#]*", r"\1=***", bare)
    return _KNOWN.sub("***", bare)


def scrubbed(text: str) -> str:
    """A message of someone else's without the credentials of the addresses in it."""
    text = re.sub(r"[A-Za-z][\w+.\-]*://[^\s'\"<>]+", lambda m: without_credentials(m[0]), text)
    # HTTP libraries also print the path and query alone, and headers.
    text = re.sub(rf"(?i)([?&][^=&\s]*{_SECRET}[^=&\s]*)=[^&\s'\")]*", r"\1=***", text)
    text = re.sub(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._\-]{8,}", r"\1 ***", text)
    return _KNOWN.sub("***", text)


def alias(name: str) -> str:
    """A short stable stand-in for a patient or slide name in reports and tracking."""
    return hashlib.sha256(name.encode()).hexdigest()[:8]
