"""With this folder on PYTHONPATH, packages named in ABSENT cannot be found, as if they were not installed."""

import importlib.machinery
import os
import sys

_ABSENT = set(os.environ.get("ABSENT", "").split(","))


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in _ABSENT:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = _Finder
