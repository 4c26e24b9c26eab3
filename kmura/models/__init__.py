"""Networks: backbones, heads, the classifier and its weights."""

# Before any module of this room: at the end of its import Keras is told of the classifier (see kmura.registration),
# which needs modules of this room and would find them half imported.
import keras  # noqa: F401
