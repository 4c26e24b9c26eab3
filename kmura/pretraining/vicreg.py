"""VICReg: variance, invariance, covariance regularisation (Bardes et al. 2022, arXiv 2105.04906)."""

from kmura.config import MethodConfig
from kmura.pretraining.embedding_losses import covariance, invariance, variance
from kmura.pretraining.method import PretrainingModel


class VICReg(PretrainingModel):
    """Makes the projections of a pair equal while each dimension keeps its variance and no two dimensions covary.

    No image is a negative of another one, so the batch may be smaller than for SimCLR. The factors of the terms (mean
    of the two variance terms, sum of the two covariance terms) are those of the authors' code.
    """

    term_names = ("invariance", "variance", "covariance")

    def __init__(self, network, task, config: MethodConfig, **kwargs):
        super().__init__(network, task, **kwargs)
        self.weights_of_terms = {name: getattr(config, name) for name in self.term_names}

    def terms(self, first, second, group):
        values = {
            "invariance": invariance(first, second),
            "variance": (variance(first) + variance(second)) / 2,
            "covariance": covariance(first) + covariance(second),
        }
        return {name: self.weights_of_terms[name] * value for name, value in values.items()}
