"""Charts as inline SVG, drawn with the page's own colours so that they follow its light and dark theme.

Everything is in units of a 480 x 260 picture that scales with the page. Text given to these functions may be anything:
it is escaped here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 14, 40
_NAMES = 56  # width of the lines' labels
_ROW = 13  # height of one
_COLOURS = 7  # of lines
REFERENCE = 7  # the colour of the line at 1.0


class Line(NamedTuple):
    label: str
    points: list[tuple[float, float]]
    colour: int  # class `c0` .. of the page's style
    dashed: bool = False
    dots: bool = False  # at each point, where they are few, perhaps a single one
    named: bool = False  # its label beside its last point


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    percent: bool = False,
    x_names: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines over a common axis; points that are not finite are left out. The caller writes the legend.

    `x_names`: where ticks are and what they say, in place of round numbers.
    """
    finite = [line._replace(points=[p for p in line.points if all(map(math.isfinite, p))]) for line in lines]
    xs, ys = ([point[axis] for line in finite for point in line.points] for axis in (0, 1))
    if not xs:
        return Markup("")
    y_ticks = _ticks(0.0 if percent else min(ys), max(ys))
    named = [line for line in finite if line.named and line.points]
    x_at = _scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT - (_NAMES if named else 0))
    y_at = _scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    x_ticks = [tick for tick in _ticks(min(xs), max(xs)) if min(xs) <= tick <= max(xs)]
    names = x_names or [(tick, plain_number(tick)) for tick in x_ticks]
    parts = [_y_axis(y_ticks, y_at, y_label, percent), *(_x_tick(x_at(x), name) for x, name in names)]
    parts.append(_x_label(x_label))
    for line in finite:
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line.points)
        dashed = " dashed" if line.dashed else ""
        parts.append(Markup('<polyline class="line c{}{}" points="{}"/>').format(line.colour, dashed, path))
        if line.dots:
            dot = Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
            parts += [dot.format(line.colour, x_at(x), y_at(y)) for x, y in line.points]
    return _svg(title, [*parts, *_names(named, x_at, y_at)])


def bar_chart(groups: Sequence[tuple[str, Sequence[float]]], *, title: str, y_label: str) -> Markup:
    """Shares (0 to 1) as bars, side by side in each group; the n-th bar of every group has the same colour."""
    top = max((value for _, values in groups for value in values), default=0.0)
    ticks = _ticks(0.0, min(1.0, top * 1.15) or 1.0)
    y_at = _scale(0.0, max(ticks[-1], top), HEIGHT - _BOTTOM, _TOP + 8)
    parts = [_y_axis(ticks, y_at, y_label, percent=True)]
    slot = (WIDTH - _LEFT - _RIGHT) / max(1, len(groups))
    width = min(56.0, slot * 0.7 / max(1, *(len(values) for _, values in groups)))
    for place, (name, values) in enumerate(groups):
        middle = _LEFT + slot * (place + 0.5)
        parts.append(_x_tick(middle, name))
        for number, value in enumerate(values):
            left = middle + width * (number - len(values) / 2)
            parts.append(_bar(left + 1.5, y_at(value), width - 3, HEIGHT - _BOTTOM, f"b{number}"))
            told = f"{value:.0%}" if width > 30 else f"{value * 100:.0f}"  # the axis says that it is percent
            parts.append(_text(left + width / 2, y_at(value) - 5, told, "value", "middle"))
    return _svg(title, parts)


def histogram(edges: Sequence[float], counts: Sequence[int], *, title: str, x_label: str, y_label: str) -> Markup:
    """`counts[i]` rows lie from `edges[i]` to below `edges[i + 1]`; empty bins at the end are left out."""
    used = max((at + 1 for at, count in enumerate(counts) if count), default=0)
    edges, counts = edges[: used + 1], counts[:used]
    if not counts:
        return Markup("")
    ticks = _ticks(0, max(counts), whole=True)
    y_at = _scale(0, max(ticks[-1], max(counts)), HEIGHT - _BOTTOM, _TOP)
    x_at = _scale(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    parts = [_y_axis(ticks, y_at, y_label, percent=False), _x_label(x_label)]
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        about = f"{plain_number(start)} to {plain_number(end - 1)}: {count:,}"
        parts.append(_bar(x_at(start) + 1, y_at(count), x_at(end) - x_at(start) - 2, HEIGHT - _BOTTOM, "b0", about))
    ticks = [tick for tick in _ticks(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
    parts += [_x_tick(x_at(tick), plain_number(tick)) for tick in ticks]
    return _svg(title, parts)


def _names(named: Sequence[Line], x_at, y_at) -> list[Markup]:
    """Labels beside the last points, those that would lie over one another moved down."""
    lowest, parts = -math.inf, []
    for line in sorted(named, key=lambda line: y_at(line.points[-1][1])):
        x, y = line.points[-1]
        lowest = max(y_at(y) + 4, lowest + _ROW)
        parts.append(_text(x_at(x) + 8, lowest, line.label, "tick", "start"))
    return parts


def spaced(at: int) -> int:
    """The colour of line number `at` among few: neighbours of the scale look alike."""
    return (2 * at) % _COLOURS


def thin(points: Sequence[tuple[float, float]], most: int = 80) -> list[tuple[float, float]]:
    """At most `most` points: each the mean of its neighbours, none dropped."""
    step = math.ceil(len(points) / most) or 1
    groups = [points[at : at + step] for at in range(0, len(points), step)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def plain_number(value: float) -> str:
    """1200 as 1.2k, 0.25 as 0.25."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to six round numbers that enclose low..high."""
    span = high - low or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * at, 10) for at in range(first, max(last, first + 1) + 1)]


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


def _y_axis(ticks: Sequence[float], y_at, label: str, percent: bool) -> Markup:
    lines = Markup("").join(
        Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LEFT, WIDTH - _RIGHT, y_at(tick), y_at(tick)
        )
        + _text(_LEFT - 6, y_at(tick) + 4, f"{tick:.0%}" if percent else plain_number(tick), "tick", "end")
        for tick in ticks
    )
    turned = Markup('<text class="axis" text-anchor="middle" transform="translate(11 {}) rotate(-90)">{}</text>')
    return lines + turned.format((_TOP + HEIGHT - _BOTTOM) / 2, label)


def _x_tick(x: float, text: str) -> Markup:
    return _text(min(x, WIDTH - _RIGHT - 4), HEIGHT - _BOTTOM + 16, text, "tick", "middle")


def _x_label(text: str) -> Markup:
    return _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, text, "axis", "middle")


def _bar(left: float, top: float, width: float, bottom: float, kind: str, about: str = "") -> Markup:
    told = Markup("<title>{}</title>").format(about) if about else ""
    shape = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2">{}</rect>'
    return Markup(shape).format(kind, left, top, max(width, 1), max(bottom - top, 0), told)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )
