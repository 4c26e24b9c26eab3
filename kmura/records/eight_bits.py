"""The conversion of pixels of any depth to 8 bits. The graph of an export repeats it (`kmura.serving.pixels`)."""

import numpy as np
from PIL import Image

OPAQUE = 65535  # alpha of an opaque pixel of 16 bits


def eight_bits(
    values: np.ndarray,
    *,
    alpha: np.ndarray | None = None,
    inverted: bool = False,
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """The pixels as an image of mode L or RGB.

    Integers are divided by 2^(b-8), where b is the smallest depth of 8 to 16 bits that holds the maximum of the visible
    pixels, so that 12-bit data in a 16-bit file keeps its contrast. Floats are mapped linearly from `limits` to 0..255
    and clipped.

    Args:
        values: [H, W] or [H, W, 3], integers in 0..65535 or finite floats.
        alpha: 16-bit opacity of integer values, [H, W] in 0..OPAQUE; transparent pixels become black.
        inverted: whether the smallest value is white.
        limits: values that become 0 and 255; None: minimum and maximum. Ignored for integers.

    Raises:
        ValueError: integers outside 0..65535 or floats that are not finite; the message is the reason.
    """
    if values.dtype.kind == "f":
        shades = _stretched(values, limits)
    else:
        shades = _shifted(values, alpha)
    image = Image.fromarray(255 - shades if inverted else shades)
    if alpha is None:
        return image
    layer = image.convert("RGBA")
    layer.putalpha(Image.fromarray((alpha >> 8).astype(np.uint8)))
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), layer).convert(image.mode)


def _stretched(values: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    low, high = limits or (float(values.min()), float(values.max()))
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.round(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)


def _shifted(values: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"holds values from {values.min()} to {values.max()}, outside 16 bits")
    visible = values if alpha is None else values * (alpha > 0).reshape(alpha.shape + (1,) * (values.ndim - 2))
    depth = max(8, int(visible.max()).bit_length())
    return np.minimum(values >> (depth - 8), 255).astype(np.uint8)  # hidden pixels may exceed the depth
