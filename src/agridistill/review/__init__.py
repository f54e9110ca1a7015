"""Review of photos by people: the record of their judgements, its agreement and results, and the page to label fast.

No torch: the model runs as on a device.
"""

from agridistill.review.record import (
    LABEL,
    SPECIAL,
    UNDO,
    Action,
    Agreement,
    Choice,
    Judgements,
    ReviewLog,
    agreements,
    cohens_kappa,
    settled,
)

__all__ = [
    "LABEL",
    "SPECIAL",
    "UNDO",
    "Action",
    "Agreement",
    "Choice",
    "Judgements",
    "ReviewLog",
    "agreements",
    "cohens_kappa",
    "settled",
]
