"""SimCLR: a simple framework for contrastive learning (Chen et al. 2020, arXiv 2002.05709)."""

from kmura.config import MethodConfig
from kmura.pretraining.embedding_losses import nt_xent
from kmura.pretraining.method import PretrainingModel


class SimCLR(PretrainingModel):
    """Finds the other view of a pair among all views of the batch, by the cosine similarity of their projections.

    The batch provides the negatives, so its size matters. With pairs from one study (Azizi et al. 2021, arXiv
    2101.05224) other images of that study in the batch are not negatives.
    """

    term_names = ("nt_xent",)
    normalised = True

    def __init__(self, network, task, config: MethodConfig, **kwargs):
        super().__init__(network, task, **kwargs)
        self.temperature = config.temperature

    def terms(self, first, second, group):
        return {"nt_xent": nt_xent(first, second, self.temperature, group)}
