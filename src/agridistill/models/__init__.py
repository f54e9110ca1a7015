"""Creates networks by name, loads their weights, and gives their attention maps, cost and int8 form (`models.int8`).

Other packages import the names below from here, not from the modules `factory`, `weights`, `taps` and `teacher`.
"""

from agridistill.models.factory import (
    VARIANTS,
    complexity,
    create_model,
    describe_start,
    hub_reachable,
    known_weights,
    packaged,
    pretrained_normalisation,
    require_known_model,
)
from agridistill.models.taps import StageTap, aligned_stride, with_attention
from agridistill.models.teacher import (
    OUTPUTS_VERSION,
    LiveTeacher,
    TeacherKind,
    TeacherOutputs,
    TorchBackend,
    load_backend,
    load_network,
    network_of,
    normalise_batch,
)
from agridistill.models.weights import (
    LEAF,
    LEAF_WEIGHTS,
    Channels,
    load_weights,
    save_weights,
    start_path,
    weights_file,
)

__all__ = [
    "LEAF",
    "LEAF_WEIGHTS",
    "OUTPUTS_VERSION",
    "VARIANTS",
    "Channels",
    "LiveTeacher",
    "StageTap",
    "TeacherKind",
    "TeacherOutputs",
    "TorchBackend",
    "aligned_stride",
    "complexity",
    "create_model",
    "describe_start",
    "hub_reachable",
    "known_weights",
    "load_backend",
    "load_network",
    "load_weights",
    "network_of",
    "normalise_batch",
    "packaged",
    "pretrained_normalisation",
    "require_known_model",
    "save_weights",
    "start_path",
    "weights_file",
    "with_attention",
]
