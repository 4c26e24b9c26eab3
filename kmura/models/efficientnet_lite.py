"""EfficientNet-Lite (Liu 2020; Tan & Le 2019 without squeeze-and-excitation, with ReLU6) as trained in TensorFlow."""

import keras
from keras_hub.models import EfficientNetBackbone

# the values of variant lite0 in keras-hub's converter of timm's weights
LITE0 = {
    "stackwise_width_coefficients": [1.0] * 7,
    "stackwise_depth_coefficients": [1.0] * 7,
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
    "stackwise_squeeze_and_excite_ratios": [0] * 7,
    "stackwise_block_types": ["v1"] * 7,
    "activation": "relu6",
}
# of the training in TensorFlow
TRAINED = {"include_stem_padding": False, "stem_conv_padding": "same", "batch_norm_epsilon": 1e-3}


@keras.saving.register_keras_serializable("kmura")
class EfficientNetLite(EfficientNetBackbone):
    """keras-hub's EfficientNet with the padding `same` of TensorFlow in its depthwise convolutions.

    EfficientNetBackbone pads the input of every depthwise convolution by half the kernel on all sides, as torch does.
    With stride 2 and an even side, this samples positions one pixel away from those of a network that was trained in
    TensorFlow.
    """

    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see EfficientNetBackbone, such as `**LITE0, **TRAINED`.
        """
        super().__init__(**kwargs)
        for layer in self.layers:
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                layer.padding = "same"
                self.get_layer(layer.name.removesuffix("dwconv") + "dwconv_pad").padding = ((0, 0), (0, 0))


def efficientnet_lite0() -> EfficientNetLite:
    """Returns EfficientNet-Lite0 with random weights: [B, H, W, 3] -> [B, H / 32, W / 32, 1280]."""
    return EfficientNetLite(**LITE0, **TRAINED)
