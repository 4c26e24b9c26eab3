"""Explanations of models and their faithfulness. `kmura.explain(run)` calls `kmura.explain.gallery.explain`."""

import sys
import types


class _Room(types.ModuleType):
    """A callable module: the package and the function of the public API share the name `explain`."""

    def __call__(self, *args, **kwargs):
        from kmura.explain.gallery import explain

        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
