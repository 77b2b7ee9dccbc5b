"""Pictures made small enough to be stored with the text that shows them."""

from __future__ import annotations

from io import BytesIO


def smaller(picture: bytes) -> bytes:
    """The picture as a PNG of 256 colours: a figure or a page looks the same in it, at a third of the bytes."""
    from PIL import Image

    whole = Image.open(BytesIO(picture)).convert("RGB")
    # Not Pillow's usual choice of colours, which drops rare ones: those of a legend or a border, say.
    few = whole.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=5, dither=Image.Dither.NONE)
    packed = BytesIO()
    few.save(packed, "PNG", optimize=True)
    return packed.getvalue()
