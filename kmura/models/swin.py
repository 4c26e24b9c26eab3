"""Swin transformers of keras-hub as feature maps [B, H, W, C]."""

import contextlib
import dataclasses
import warnings

import keras

from kmura.errors import InputError
from kmura.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from kmura.models.lookup import entry

LEVELS = {"S3": 2, "S4": 3}  # name of a map -> the stage that it is of, counted from 0


@dataclasses.dataclass(frozen=True)
class SwinEntry:
    """A Swin transformer (Liu et al. 2021).

    Attributes:
        embed_dim: channels of the first stage; each later one has twice as many.
        depths, heads: blocks, attention heads of each stage.
        window: side of the attention windows, in tokens.
        mean, std: of the images that it was trained on, on the scale 0..255; taken off, and divided by.
        imagenet: keras-hub preset of its ImageNet weights, or None.
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
        """Safe image sides are multiples of this: every stage is then made of whole windows, and even.

        keras-hub pads other sides, with other attention masks than the reference's, or fails.
        """
        return 32 * self.window

    def map_shape(self, level: str, side: int) -> tuple[int, int, int]:
        """Rows, columns and channels of a map of LEVELS for images of this side: each stage halves and doubles."""
        stage = LEVELS[level]
        rows = side // 4 // 2**stage
        return rows, rows, self.embed_dim * 2**stage


SWINS: dict[str, SwinEntry] = {
    "swin_tiny": SwinEntry(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, "swin_tiny_patch4_window7_224"),
    "swin_small": SwinEntry(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, "swin_small_patch4_window7_224"),
    "swin_base": SwinEntry(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, "swin_base_patch4_window7_224"),
    "swin_base_384": SwinEntry(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, "swin_base_patch4_window12_384"),
    # For tests: 0.2 million parameters, images of 64 pixels and multiples.
    "swin_mini": SwinEntry(16, (1, 1, 2, 1), (1, 2, 4, 8), 2, None),
}


def check_side(swin: str, side: int) -> None:
    """Refuses an image side that this Swin transformer cannot take.

    Raises:
        InputError: an unknown name, or a side that is no multiple of `SwinEntry.unit`; names those that are.
    """
    unit = entry(SWINS, swin, "Swin transformer").unit
    if side < unit or side % unit:
        raise InputError(
            f"image_size {side} is not safe for {swin}, whose windows would not fill its stages; give {unit}, "
            f"{2 * unit} or {3 * unit}"
        )


def build_swin(swin: str, side: int, dtype=None) -> keras.Model:
    """A keras-hub SwinTransformerBackbone with random weights for square images of this side; dtype is a policy."""
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
    """Keras takes the mask of the attention for one of its own, and warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was passed an input with a mask attached", UserWarning)
        yield


@keras.saving.register_keras_serializable("kmura")
class SwinMaps(keras.layers.Layer):
    """The feature maps of a Swin transformer, by name of LEVELS, of the shapes that `SwinEntry.map_shape` gives: S4
    after the final normalisation, and, if asked for, S3: the third stage before its patches are merged, with a
    normalisation of its own, as where a Swin transformer feeds a feature pyramid.

    Attributes:
        backbone: the SwinTransformerBackbone.
    """

    def __init__(self, swin: str = "swin_base", side: int = 224, third_stage: bool = False, **kwargs):
        """
        Args:
            swin: a name of SWINS.
            side: of the square images, pixels.
            third_stage: give S3 too.

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
        """Maps of normalised images [B, side, side, 3]."""
        with _quiet():
            return self._maps(images)

    def _maps(self, images) -> dict:
        body, found = self.backbone, {}
        tokens = body.get_layer("pos_drop")(body.patch_embedding(images))
        for number, stage in enumerate(body.stages):
            for block in stage.blocks:
                tokens = block(tokens)
            if number == LEVELS["S3"] and self.norm is not None:
                found["S3"] = self._map(self.norm(tokens), "S3")
            if stage.downsample is not None:
                rows, columns = stage.input_resolution
                tokens = stage.downsample(tokens, H=rows, W=columns)
        return found | {"S4": self._map(body.norm(tokens), "S4")}

    def _map(self, tokens, level: str):
        """Tokens [B, h * w, C] as [B, h, w, C]."""
        return keras.ops.reshape(tokens, (-1, *self._shape(level)))

    def _shape(self, level: str) -> tuple[int, int, int]:
        return SWINS[self.swin].map_shape(level, self.side)

    def compute_output_spec(self, images):
        levels = LEVELS if self.third_stage else ("S4",)
        return {level: keras.KerasTensor((None, *self._shape(level)), dtype=self.compute_dtype) for level in levels}

    def get_config(self):
        return super().get_config() | {"swin": self.swin, "side": self.side, "third_stage": self.third_stage}
