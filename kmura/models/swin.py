"""The registry of Swin transformers (keras-hub), and a layer that returns their feature maps [B, H, W, C]."""

import contextlib
import dataclasses
import warnings

import keras

from kmura.errors import InputError
from kmura.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from kmura.models.lookup import entry

LEVELS = {"S3": 2, "S4": 3}  # name of a map -> its stage, counted from 0


@dataclasses.dataclass(frozen=True)
class SwinEntry:
    """A Swin transformer (Liu et al. 2021).

    Attributes:
        embed_dim: channels of the first stage; each later stage has twice as many as the one before.
        depths, heads: numbers of blocks and of attention heads per stage.
        window: side of the attention windows, in tokens.
        imagenet: keras-hub preset of its ImageNet weights, or None.
        mean, std: normalisation of the images it was trained on, (image - mean) / std, on the scale 0..255.
    """

    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int
    imagenet: str | None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def unit(self) -> int:
        """The image side, pixels, must be a multiple of this, so that windows fill every stage and its side is even.

        For other sides keras-hub fails, or pads with attention masks that differ from the reference implementation.
        """
        return 32 * self.window

    def map_shape(self, level: str, side: int) -> tuple[int, int, int]:
        """Returns rows, columns and channels of a map of LEVELS for square images of `side` pixels."""
        stage = LEVELS[level]
        rows = side // 4 // 2**stage
        return rows, rows, self.embed_dim * 2**stage


SWINS: dict[str, SwinEntry] = {
    "swin_tiny": SwinEntry(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, "swin_tiny_patch4_window7_224"),
    "swin_small": SwinEntry(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, "swin_small_patch4_window7_224"),
    "swin_base": SwinEntry(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, "swin_base_patch4_window7_224"),
    "swin_base_384": SwinEntry(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, "swin_base_patch4_window12_384"),
    # For tests: 0.2 million parameters, image sides that are multiples of 64 pixels.
    "swin_mini": SwinEntry(16, (1, 1, 2, 1), (1, 2, 4, 8), 2, None),
}


def check_side(swin: str, side: int) -> None:
    """Checks that a Swin transformer supports an image side.

    Args:
        swin: a name of SWINS.
        side: side of the square images, pixels.

    Raises:
        InputError: the name is unknown, or the side is not a multiple of `SwinEntry.unit`; lists valid sides.
    """
    unit = entry(SWINS, swin, "Swin transformer").unit
    if side < unit or side % unit:
        raise InputError(
            f"image_size {side} is not supported by {swin}: its windows would not fill every stage; give {unit}, "
            f"{2 * unit} or {3 * unit}"
        )


def build_swin(swin: str, side: int, dtype=None) -> keras.Model:
    """Returns a SwinTransformerBackbone of keras-hub with random weights.

    Args:
        swin: a name of SWINS.
        side: side of the square images, pixels.
        dtype: dtype policy of the layers; None uses the current policy of Keras.

    Raises:
        InputError: see `check_side`.
    """
    from keras_hub.models import SwinTransformerBackbone

    check_side(swin, side)
    parts = SWINS[swin]
    with _quiet():
        return SwinTransformerBackbone(
            image_shape=(side, side, 3),
            embed_dim=parts.embed_dim,
            depths=parts.depths,
            num_heads=parts.heads,
            window_size=parts.window,
            dtype=dtype,
            name=swin,
        )


@contextlib.contextmanager
def _quiet():
    """Suppresses the warning of Keras that mistakes the attention mask for a Keras mask."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was passed an input with a mask attached", UserWarning)
        yield


@keras.saving.register_keras_serializable("kmura")
class SwinMaps(keras.layers.Layer):
    """Returns the feature maps of a Swin transformer by name, with the shapes of `SwinEntry.map_shape`.

    S4 is the output of the final normalisation. The optional S3 is the output of the third stage before patch merging,
    with a separate normalisation layer, as in feature pyramids on Swin transformers.

    Attributes:
        backbone: the SwinTransformerBackbone.
    """

    def __init__(self, swin: str = "swin_base", side: int = 224, third_stage: bool = False, **kwargs):
        """
        Args:
            swin: a name of SWINS.
            side: side of the square images, pixels.
            third_stage: also return S3.

        Raises:
            InputError: see `check_side`.
        """
        super().__init__(**kwargs)
        self.swin, self.side, self.third_stage = swin, side, third_stage
        self.backbone = build_swin(swin, side, self.dtype_policy)
        self.norm = (
            keras.layers.LayerNormalization(epsilon=1e-5, dtype=self.dtype_policy, name="stage_norm")
            if third_stage
            else None
        )

    def build(self, input_shape):
        if self.norm is not None:
            self.norm.build((None, None, self._shape("S3")[-1]))

    def call(self, images):
        """Returns the maps of normalised images [B, side, side, 3]."""
        with _quiet():
            return self._maps(images)

    def _maps(self, images) -> dict:
        body, maps = self.backbone, {}
        tokens = body.get_layer("pos_drop")(body.patch_embedding(images))
        for number, stage in enumerate(body.stages):
            for block in stage.blocks:
                tokens = block(tokens)
            if number == LEVELS["S3"] and self.norm is not None:
                maps["S3"] = self._map(self.norm(tokens), "S3")
            if stage.downsample is not None:
                rows, columns = stage.input_resolution
                tokens = stage.downsample(tokens, H=rows, W=columns)
        return maps | {"S4": self._map(body.norm(tokens), "S4")}

    def _map(self, tokens, level: str):
        """Reshapes tokens [B, h * w, C] to [B, h, w, C]."""
        return keras.ops.reshape(tokens, (-1, *self._shape(level)))

    def _shape(self, level: str) -> tuple[int, int, int]:
        return SWINS[self.swin].map_shape(level, self.side)

    def compute_output_spec(self, images):
        levels = LEVELS if self.third_stage else ("S4",)
        return {level: keras.KerasTensor((None, *self._shape(level)), dtype=self.compute_dtype) for level in levels}

    def get_config(self):
        return super().get_config() | {"swin": self.swin, "side": self.side, "third_stage": self.third_stage}
