"""Converts a network so that it computes like its int8 export, and calibrates its roundings."""

from agridistill.models.int8.graph import calibrate, equalise, folded, quantised, with_rounded_logits
from agridistill.models.int8.rounding import PhotoLevels, Ranges, RoundedConv2d, RoundedLinear, UnitClamp

__all__ = [
    "PhotoLevels",
    "Ranges",
    "RoundedConv2d",
    "RoundedLinear",
    "UnitClamp",
    "calibrate",
    "equalise",
    "folded",
    "quantised",
    "with_rounded_logits",
]
