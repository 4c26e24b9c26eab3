"""The names in the configuration equal those of the model registries."""

from kmura.config import names


def test_the_names_equal_the_registries_in_the_same_order():
    from kmura.models.backbones import BACKBONES
    from kmura.models.fusion import FUSIONS
    from kmura.models.heads import HEADS
    from kmura.models.swin import SWINS

    assert names.BACKBONE_NAMES == tuple(BACKBONES)
    assert names.SWIN_NAMES == tuple(SWINS)
    assert names.FUSION_NAMES == tuple(FUSIONS)
    assert names.HEAD_NAMES == tuple(HEADS)


def test_the_phase_names_equal_those_of_classification():
    from kmura.classification.phases import PHASES

    assert names.PHASE_NAMES == PHASES
