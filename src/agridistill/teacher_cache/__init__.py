"""Stores the outputs of a teacher on the disk, so that the teacher runs only once for many students.

`store` defines the files and their key, `features` compresses feature maps, `build` fills a cache and reads it during
training. A cache that is damaged, or was made for another teacher, data set, recipe or version, is never used.
"""

from agridistill.teacher_cache.build import CachedTeacher, UncachedTeacher, load_teacher
from agridistill.teacher_cache.store import cache_key, digest_of, read_document

__all__ = ["CachedTeacher", "UncachedTeacher", "cache_key", "digest_of", "load_teacher", "read_document"]
