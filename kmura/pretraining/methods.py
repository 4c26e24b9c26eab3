"""The registry of methods of pretraining. To add one, write a PretrainingModel in a file of its own and add it here."""

from kmura.pretraining.method import PretrainingModel
from kmura.pretraining.simclr import SimCLR
from kmura.pretraining.vicreg import VICReg

METHODS: dict[str, type[PretrainingModel]] = {"simclr": SimCLR, "vicreg": VICReg}
