"""Networks by name, their weights, their attention maps, their cost, and their int8 form (`models.int8`).

Others import from here; the modules are `factory`, `weights`, `taps`, `teacher`, `complexity` and `int8`.
"""

from agridistill.models.complexity import complexity
from agridistill.models.factory import (
    VARIANTS,
    create_model,
    describe_start,
    hub_reachable,
    packaged,
    pretrained_normalisation,
    require_known_model,
)
from agridistill.models.taps import StageTap, feature_attention
from agridistill.models.teacher import (
    OUTPUTS_VERSION,
    HasPixels,
    LiveTeacher,
    TeacherKind,
    TorchBackend,
    load_backend,
    load_network,
    network_of,
    normalise_batch,
)
from agridistill.models.weights import load_weights, save_weights

__all__ = [
    "OUTPUTS_VERSION",
    "VARIANTS",
    "HasPixels",
    "LiveTeacher",
    "StageTap",
    "TeacherKind",
    "TorchBackend",
    "complexity",
    "create_model",
    "describe_start",
    "feature_attention",
    "hub_reachable",
    "load_backend",
    "load_network",
    "load_weights",
    "network_of",
    "normalise_batch",
    "packaged",
    "pretrained_normalisation",
    "require_known_model",
    "save_weights",
]
