"""Who and where, as file names tell it: Market-1501, DukeMTMC-reID, MSMT17, CUHK03, own patterns.

Identities and cameras are text. Numbers lose leading zeros and identities get four digits again,
so that `0000151` and `151` are one person, shown as Market-1501 writes it: `0151`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zoo.errors import ConfigError

DISTRACTOR = "distractor"
"""Person of gallery images nobody asks for: badly cut boxes (Market-1501's identity 0000)."""
JUNK = "junk"
"""Person of images that count neither as right nor as wrong (Market-1501's identity -1)."""

# The first run of digits before `_c`, then the camera (the data sets' own readme files).
_CAMERA_NAME = re.compile(r"(-?\d+)_c(\d+)")
_MARKET = re.compile(r"-?\d+_c\d+s\d+_")
_DUKE = re.compile(r"\d+_c\d+_f\d+")
# `0000_000_01_0303morning_0015_0.jpg`: identity, running number, camera, time of day, frame, box.
_MSMT17 = re.compile(r"(\d+)_\d+_(\d+)_")
_MSMT17_FORM = re.compile(r"\d{4}_\d{3}_\d{2}_\w+")
# `1_001_2_07.png`: pair of cameras, identity within it, camera of the pair, image.
_CUHK03 = re.compile(r"(\d+_\d+)_([12])_\d+")
# `7_2_x.jpg`, `anna_c2.jpg`, `0007_c2s1_x.jpg`, `12_lobby_x.jpg`.
_PLAIN = re.compile(
    r"(?P<pid>-?[A-Za-z0-9]+)_(?:(?:cam|c)(?=\d))?"
    r"(?P<cam>\d+(?=s\d|[^A-Za-z0-9])|[A-Za-z]+(?=[^A-Za-z0-9]))"
)
_EXPECTED = {
    "market1501": "PPPP_cCsS_FFFFFF_BB.jpg",
    "dukemtmc": "PPPP_cC_fFFFFFFF.jpg",
    "occluded_duke": "PPPP_cC_fFFFFFFF.jpg",
    "msmt17": "PPPP_NNN_CC_….jpg",
    "cuhk03": "P_NNN_V_II.png",
    "folder": "pid_cam_anything.jpg",
}


@dataclass(frozen=True)
class Name:
    """What a file name says.

    Attributes:
        person: Identity, `DISTRACTOR` or `JUNK`.
        camera: Camera.
    """

    person: str
    camera: str


def parse(name: str, layout: str, pattern: re.Pattern[str] | None = None) -> Name | None:
    """Identity and camera in a file name of a layout.

    Args:
        name: File name; with a pattern, the path below its folder.
        layout: One of `config.LAYOUTS`.
        pattern: The user's own, with groups `pid` and `cam` (folder layout).

    Returns:
        None where the name is not of the layout's form.
    """
    if layout == "folder":
        found = pattern.search(name) if pattern else _PLAIN.match(name)
        if found is None or not found["pid"] or not found["cam"]:
            return None
        return Name(_person(found["pid"], zero=False), number(found["cam"]))
    match = {"msmt17": _MSMT17, "cuhk03": _CUHK03}.get(layout, _CAMERA_NAME).match(name)
    if match is None:
        return None
    return Name(_person(match[1], zero=layout == "market1501"), number(match[2]))


def _person(text: str, *, zero: bool) -> str:
    """`zero`: whether identity 0 is a distractor; elsewhere people are counted from 0."""
    if not re.fullmatch(r"-?\d+", text):
        return text
    value = int(text)
    if value < 0:
        return JUNK
    return DISTRACTOR if zero and value == 0 else f"{value:04d}"


def number(text: str) -> str:
    """A camera as text, without leading zeros."""
    return str(int(text)) if text.isdecimal() else text


def order(text: str) -> tuple[int, int, str]:
    """Sorts identities and cameras: numbers by value, then words."""
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def domain_of(layout: str) -> str:
    """Whose cameras a layout's names mean: Occluded-Duke chose among DukeMTMC-reID's images."""
    return {"occluded_duke": "dukemtmc"}.get(layout, layout)


def expected(layout: str) -> str:
    """How file names of a layout look, for messages."""
    return _EXPECTED[layout]


def is_duke(name: str) -> bool:
    """Whether a name is of DukeMTMC-reID's form."""
    return _DUKE.match(name) is not None


def is_market(name: str) -> bool:
    """Whether a name is of Market-1501's form."""
    return _MARKET.match(name) is not None


def form_of(name: str) -> str | None:
    """The data set whose form a single file's name has; None for any other name."""
    strict = ("market1501", _MARKET), ("dukemtmc", _DUKE), ("msmt17", _MSMT17_FORM)
    for layout, match in strict:
        if match.match(name):
            return layout
    return None


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """The user's pattern, checked.

    Raises:
        ConfigError: It is no regular expression, or lacks a group.
    """
    if pattern is None:
        return None
    try:
        made = re.compile(pattern)
    except re.error as error:
        msg = f"data.pattern is no regular expression: {error}"
        raise ConfigError(msg) from None
    lacking = [g for g in ("pid", "cam") if g not in made.groupindex]
    if lacking:
        msg = (
            f"data.pattern has no group '{lacking[0]}'; write (?P<pid>…) where the identity stands "
            "and (?P<cam>…) where the camera does"
        )
        raise ConfigError(msg)
    return made
