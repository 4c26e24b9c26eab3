"""Networks: backbones, heads, the classifier and its weights."""

# Keras must be imported before any module of this package: at the end of its import, kmura.registration registers the
# classifier, which imports modules of this package and would otherwise find them partially initialised.
import keras  # noqa: F401
