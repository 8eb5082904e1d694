"""QR codes as SVG. To draw one takes the interpreter 10 ms and more, so few are drawn a second, beside the clicks, and
they are kept."""

import asyncio
import io
import time

import segno

from schemas import limits
from schemas.two_tier import TwoTier

QrCodes = TwoTier[str, bytes]  # by the text they say


def qr_codes() -> QrCodes:
    return TwoTier(
        _draw,
        entries_max=limits.QR_HELD_MAX,
        life_s=lambda _: limits.QR_LIFE_S,
        keys_max=1,
        waiting_max=limits.QR_WAITING_MAX,
    )


async def _draw(texts: list[str]) -> dict[str, bytes | None]:
    began = time.monotonic()
    drawn: dict[str, bytes | None] = {text: await asyncio.to_thread(_svg, text) for text in texts}
    await asyncio.sleep((time.monotonic() - began) * (1 / limits.QR_SHARE - 1))
    return drawn


def _svg(text: str) -> bytes:
    """With error correction M (15 %), and the quiet zone of four modules that ISO/IEC 18004 asks for."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(out, kind="svg", scale=8, border=4, light="#fff")
    return out.getvalue()
