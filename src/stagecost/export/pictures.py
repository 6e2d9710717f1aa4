"""Read pictures as in training: beside an exported network, for its runner. Needs Pillow and numpy."""

import sys
import warnings
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps

# As in training. Pillow reads other formats, too, some of them by running other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")


def read(spec: dict[str, Any], path: str) -> Any:
    """Read a picture, or say in one line what is wrong with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return decode(spec, path)
        except Exception as error:  # decoders have errors of many kinds
            sys.exit(f"{path} cannot be read as a picture: {error}")


def decode(spec: dict[str, Any], path: str) -> Any:
    """Decode a picture of 8 bits: upright, on white, resized and cropped; (channels, size, size)."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    size, picture = spec["size"], cast("Any", Image.open(path, formats=formats))
    if picture.mode[0] in "IF":
        sys.exit(f"{path} has more than 8 bits: convert it")
    widen_clear_value(picture)
    turned = picture.getexif().get(0x0112, 1) != 1  # the camera was held sideways
    picture = ImageOps.exif_transpose(picture) if turned else picture
    picture.draft(None, (2 * size, 2 * size))
    if picture.has_transparency_data:
        layer, picture = picture.convert("RGBA"), Image.new("RGB", picture.size, "white")
        picture.paste(layer, mask=layer)
    picture, way = picture.convert("L" if spec["channels"] == 1 else "RGB"), spec["interpolation"]
    picture = ImageOps.fit(picture, (size, size), Image.Resampling[way.upper()])
    return np.asarray(picture).reshape(size, size, -1).transpose(2, 0, 1)


def widen_clear_value(picture: Any) -> None:
    """Bring the one clear value of a PNG to 8 bits, as Pillow does with its pixels alone."""
    clear, kinds = picture.info.get("transparency"), [str(tile[3]) for tile in picture.tile]
    if isinstance(clear, tuple) and any(";16" in kind for kind in kinds):
        raise ValueError("its clear colour has 16 bits, of which only the upper 8 can be read")
    if isinstance(clear, int) and len(kinds) == 1:
        picture.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(kinds[0], 1)
