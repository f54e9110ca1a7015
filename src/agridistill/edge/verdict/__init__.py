"""From a frame to a detection: `Decider` (quality gate, model, verdict) and `CurrentModel`, the model that runs now."""

from agridistill.edge.verdict.current_model import CurrentModel, EarlierModels, require_model
from agridistill.edge.verdict.decider import Decider, Origin, event_id, thumbnail

__all__ = ["CurrentModel", "Decider", "EarlierModels", "Origin", "event_id", "require_model", "thumbnail"]
