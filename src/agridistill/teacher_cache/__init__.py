"""The teacher's outputs on disk: what they depend on (`key`), their files (`store`), and their use (`build`).

A cache of another teacher, data, recipe or version, or a damaged one, is never used.
"""

from agridistill.teacher_cache.build import CachedTeacher, Gather, UncachedTeacher, load_teacher, sync_errors
from agridistill.teacher_cache.key import DISTILLATION_VIEWS, Viewing, cache_key
from agridistill.teacher_cache.store import CacheLayout, TeacherCache, read_document

__all__ = [
    "DISTILLATION_VIEWS",
    "CacheLayout",
    "CachedTeacher",
    "Gather",
    "TeacherCache",
    "UncachedTeacher",
    "Viewing",
    "cache_key",
    "load_teacher",
    "read_document",
    "sync_errors",
]
