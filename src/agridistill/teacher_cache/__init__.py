"""The teacher's outputs on disk: their key and files (`store`), and their use in training (`build`).

A cache of another teacher, data, recipe or version, or a damaged one, is never used.
"""

from agridistill.teacher_cache.build import CachedTeacher, Gather, UncachedTeacher, load_teacher, sync_errors
from agridistill.teacher_cache.store import CacheLayout, TeacherCache, cache_key, read_document

__all__ = [
    "CacheLayout",
    "CachedTeacher",
    "Gather",
    "TeacherCache",
    "UncachedTeacher",
    "cache_key",
    "load_teacher",
    "read_document",
    "sync_errors",
]
