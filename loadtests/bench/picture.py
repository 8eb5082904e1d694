"""The bench as one SVG picture: bars of answers a second, with how many times the bare server's they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadtests.bench.contenders import BARE, CEILING, CONTENDERS
from loadtests.bench.verdict import Line

WIDTH, BAR_X, BAR_WIDTH, ROW = 800, 360, 270, 26
# one grey that can be read on white and on black: a picture in a page does not hear of the page's theme
_TEXT, _OURS, _THEIRS = "#768390", "#2f81f7", "#8b949e"
_DURABLE = ("journal", "kafka", "kafka0")


def picture(lines: Sequence[Line], caption: str) -> str:
    """Of the clicks that are not mixed, without the load generator's ceiling. The caption says when, where and of what
    version."""
    shown = [line for line in lines if line.name != CEILING and not line.mixed]
    most = max((line.rate_s for line in shown), default=1.0)
    body: list[str] = []
    for connections in sorted({line.connections for line in shown}):
        body.append(_text(0, len(body), f"answers a second, {connections} connections", bold=True))
        for contender in (one for one in CONTENDERS if not one.conversions):
            body += [
                _bar(len(body), contender.what, line, most)
                for line in shown
                if (line.name, line.connections) == (contender.name, connections)
            ]
    body.append(_text(0, len(body), caption))
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(body) + 6}" font-size="13"'
        f' font-family="system-ui, sans-serif" fill="{_TEXT}" role="img">',
        "<title>Durable redirects beside what people build by hand</title>", *body, "</svg>\n",
    ))  # fmt: skip


def _bar(row: int, what: str, line: Line, most: float) -> str:
    width, colour = line.rate_s / most * BAR_WIDTH, _OURS if line.name in _DURABLE else _THEIRS
    figure = f"{line.rate_s:,.0f}" + (f", {line.of_bare:.1f} x bare" if line.name != BARE else "")
    return (
        _text(0, row, what)
        + f'<rect x="{BAR_X}" y="{row * ROW + 5}" width="{width:.1f}" height="{ROW - 10}" rx="2" fill="{colour}"/>'
        + _text(round(BAR_X + width) + 8, row, figure)
    )


def _text(x: int, row: int, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{row * ROW + 18}"{weight}>{escape(text)}</text>'
