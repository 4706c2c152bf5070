"""Units of yields in names, pictures and tonnes a hectare.

US statistics count soybean, corn and wheat in bushels an acre and cotton in pounds an acre; the
conversion of each crop stands beside the reader of its statistics (`yields`).
"""

from __future__ import annotations

from dataclasses import dataclass

from zoo.domains.remote_sensing.crop_yield.yields import KG_PER_HA, UNIT


@dataclass(frozen=True)
class Unit:
    """How a crop's yield is counted.

    Attributes:
        text: As people write it, `bu/acre` or `lb/acre`.
        key: The same in names of columns, `bu_acre` or `lb_acre`.
        production: Unit of the production that goes with it.
        t_ha: Tonnes a hectare of one unit.
    """

    text: str
    key: str
    production: str
    t_ha: float


def unit_of(crop: str) -> Unit:
    """The unit of a crop's yield; one bu/acre of soybean is 0.06725 t/ha.

    Raises:
        KeyError: The crop is not one of those the task has.
    """
    text = UNIT[crop]
    production = "480-lb bales" if crop == "cotton" else "bu"
    return Unit(text, text.replace("/", "_"), production, KG_PER_HA[crop] / 1000)
