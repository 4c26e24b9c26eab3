"""The names of the entries of registries, in registry order.

The registries themselves (`kmura.models`, `kmura.classification`) import Keras or pandas. The command line offers these
names as choices, and the reference of the configuration lists them, without that import. A test compares them with the
registries.
"""

BACKBONE_NAMES = ("densenet121", "densenet169", "resnet50", "resnet18_small", "densenet_mini")
SWIN_NAMES = ("swin_tiny", "swin_small", "swin_base", "swin_base_384", "swin_mini")
FUSION_NAMES = ("concat", "gated", "attention")
HEAD_NAMES = ("linear", "dense", "attention", "se_attention", "se_attention_projection")
PHASE_NAMES = ("baseline", "tune", "final", "hybrid")  # of the kind classification
