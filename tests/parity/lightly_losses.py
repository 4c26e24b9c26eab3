"""The losses of lightly (Susmelj et al. 2020), imported without the packages that they do not use.

Importing `lightly.loss` imports all of lightly, which needs torchvision, timm and PyTorch Lightning. Empty modules with
the right search path stand in for lightly's packages here, so that only the files of the two losses are executed.
"""

import importlib.machinery
import sys
import types
from pathlib import Path

PACKAGES = ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules", "lightly.utils")


def losses() -> tuple[type, type]:
    """Returns lightly's NTXentLoss and VICRegLoss.

    Raises:
        ImportError: lightly or torch is not installed.
    """
    spec = importlib.machinery.PathFinder.find_spec("lightly")
    if spec is None or spec.origin is None:
        raise ImportError("No module named 'lightly'; pip install --no-deps lightly")
    root = Path(spec.origin).parent
    stand_ins = {name: types.ModuleType(name) for name in PACKAGES}
    for name, module in stand_ins.items():
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    stand_ins["torchvision"], stand_ins["torchvision.ops"] = map(types.ModuleType, ("torchvision", "torchvision.ops"))
    stand_ins["torchvision.ops"].StochasticDepth = object  # imported by lightly.models.utils; no loss uses it
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        from lightly.loss.ntx_ent_loss import NTXentLoss
        from lightly.loss.vicreg_loss import VICRegLoss
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return NTXentLoss, VICRegLoss
