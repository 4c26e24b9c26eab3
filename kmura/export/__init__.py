"""Export of trained models for serving. `kmura.export(run, out)` calls `kmura.export.bundle.export`."""

import sys
import types


class _Room(types.ModuleType):
    """A callable module: the package and the function of the public API share the name `export`."""

    def __call__(self, *args, **kwargs):
        from kmura.export.bundle import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
