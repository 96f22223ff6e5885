# SPDX-License-Identifier: Apache-2.0
"""``.. state-picture:: NAME``: a picture of a state machine of kumo_provisioner.states.

States lie on an ellipse, so that no arrow runs through another state. The numbers on the arrows
are those of a list below the picture, which says the same in words; it is all there is where
pictures cannot be shown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from kumo_provisioner.states import ALL, GONE, MADE, StateMachine, Transition

WIDTH, MARGIN_X, MARGIN_Y = 860, 90, 30
# Of the picture, for each state on it, the beginning and the end included.
HEIGHT_EACH, HEIGHT_MORE = 56, 130
BOX_HEIGHT, DOT, BADGE = 34, 11, 11
# Pixels by which an arrow bows, so that one there and one back are two.
BOW = 26
# Where on an arrow its number may stand, best first.
PLACES = (0.42, 0.3, 0.54, 0.22, 0.66, 0.76)
HEAD = (
    '<defs><marker id="{0}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="#555"/></marker></defs>'
)


class Point(NamedTuple):
    x: float
    y: float


def reasons(machine: StateMachine) -> dict[str, int]:
    """The numbers of what moves something, in the order of the table."""
    return {
        why: number
        for number, why in enumerate(dict.fromkeys(one.why for one in machine.transitions), 1)
    }


def words(machine: StateMachine) -> list[str]:
    """What the picture shows, a line for each number."""
    lines = []
    for why in reasons(machine):
        moves: dict[str, list[str]] = {}
        for one in machine.transitions:
            if one.why == why:
                moves.setdefault(one.after, []).append(one.before)
        told = [_move(before, after) for after, before in moves.items()]
        lines.append(f"{'; '.join(told)}: {why}")
    return lines


def _move(before: list[str], after: str) -> str:
    if before == [MADE]:
        return f"begins as {after}"
    return f"{', '.join(before)} → {after}"


def picture(machine: StateMachine) -> str:
    """An SVG document."""
    places = _places(machine)
    numbers, mark = reasons(machine), f"head-{_slug(machine)}"
    lines, badges, taken = [], [], list(places.values())
    for one in machine.transitions:
        begin, middle, end = _curve(one, places)
        lines.append(
            f'<path class="transition" data-from="{escape(one.before)}" '
            f'data-to="{escape(one.after)}" d="M{begin.x:.1f} {begin.y:.1f}Q{middle.x:.1f} '
            f'{middle.y:.1f} {end.x:.1f} {end.y:.1f}" fill="none" stroke="#555" '
            f'stroke-width="1.4" marker-end="url(#{mark})"/>'
        )
        at = _free((begin, middle, end), taken)
        taken.append(at)
        badges.append(_badge(at, numbers[one.why]))
    title, told = f"States: {machine.name}", ". ".join(words(machine))
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_height(machine)}" '
            'role="img" style="max-width:100%" font-family="sans-serif" '
            f'aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title><desc>{escape(told)}</desc>",
            HEAD.format(mark),
            *lines,
            *(_state(name, at) for name, at in places.items()),
            *badges,
            "</svg>",
        ]
    )


def _slug(machine: StateMachine) -> str:
    return machine.name.lower().replace(" ", "-")


def _height(machine: StateMachine) -> int:
    return HEIGHT_MORE + HEIGHT_EACH * (len(machine.states) + 2)


def _places(machine: StateMachine) -> dict[str, Point]:
    """The middle of each state, the beginning and the end included, clockwise from the left."""
    around = (MADE, *machine.states, GONE)
    height = _height(machine)
    found = {}
    for number, name in enumerate(around):
        angle = math.pi + 2 * math.pi * number / len(around)
        found[name] = Point(
            WIDTH / 2 + (WIDTH / 2 - MARGIN_X) * math.cos(angle),
            height / 2 + (height / 2 - MARGIN_Y) * math.sin(angle),
        )
    return found


def _half(name: str) -> tuple[float, float]:
    """Half the width and height of what stands for a state."""
    if name in (MADE, GONE):
        return DOT, DOT
    return 4.6 * len(name) + 12, BOX_HEIGHT / 2


def _curve(one: Transition, places: dict[str, Point]) -> tuple[Point, Point, Point]:
    """Begin, middle and end of an arrow from the edge of one state to that of another."""
    a, b = places[one.before], places[one.after]
    length = math.dist(a, b)
    # To the left of its direction, so the one back bows to the other side.
    middle = Point(
        (a.x + b.x) / 2 + BOW * (b.y - a.y) / length, (a.y + b.y) / 2 - BOW * (b.x - a.x) / length
    )
    return _edge(a, middle, one.before), middle, _edge(b, middle, one.after)


def _edge(at: Point, towards: Point, name: str) -> Point:
    """Where the line to ``towards`` leaves the box of a state."""
    wide, high = _half(name)
    dx, dy = towards.x - at.x, towards.y - at.y
    share = min(wide / abs(dx) if dx else math.inf, high / abs(dy) if dy else math.inf, 1.0)
    return Point(at.x + dx * share, at.y + dy * share)


def _free(curve: tuple[Point, Point, Point], taken: list[Point]) -> Point:
    """The first place on an arrow that is far enough from others, or the one that is farthest."""

    def room(at: Point) -> float:
        return min((math.dist(at, other) for other in taken), default=math.inf)

    places = [_on(curve, share) for share in PLACES]
    return next((at for at in places if room(at) > 2.6 * BADGE), max(places, key=room))


def _on(curve: tuple[Point, Point, Point], share: float) -> Point:
    a, m, b = curve
    rest = 1 - share
    weights = (rest * rest, 2 * rest * share, share * share)
    return Point(
        sum(w * p.x for w, p in zip(weights, (a, m, b), strict=True)),
        sum(w * p.y for w, p in zip(weights, (a, m, b), strict=True)),
    )


def _badge(at: Point, number: int) -> str:
    return (
        f'<circle cx="{at.x:.1f}" cy="{at.y:.1f}" r="{BADGE}" fill="#fff" stroke="#555"/>'
        f'<text class="number" x="{at.x:.1f}" y="{at.y + 4:.1f}" font-size="12" '
        f'text-anchor="middle">{number}</text>'
    )


def _state(name: str, at: Point) -> str:
    if name == MADE:
        return f'<circle class="made" cx="{at.x:.1f}" cy="{at.y:.1f}" r="{DOT}" fill="#333"/>'
    if name == GONE:
        return (
            f'<circle class="gone" cx="{at.x:.1f}" cy="{at.y:.1f}" r="{DOT}" fill="#fff" '
            f'stroke="#333"/><circle cx="{at.x:.1f}" cy="{at.y:.1f}" r="{DOT - 5}" fill="#333"/>'
        )
    wide, high = _half(name)
    return (
        f'<rect class="state" x="{at.x - wide:.1f}" y="{at.y - high:.1f}" width="{2 * wide:.1f}" '
        f'height="{2 * high:.1f}" rx="8" fill="#eef3f8" stroke="#345"/>'
        f'<text class="name" x="{at.x:.1f}" y="{at.y + 5:.1f}" font-size="15" '
        f'text-anchor="middle">{escape(name)}</text>'
    )


def _list(machine: StateMachine) -> Iterator[str]:
    for number, line in zip(itertools.count(1), words(machine)):
        yield f"{number}. {_literal(line)}"
    yield ""


def _literal(line: str) -> str:
    # Nothing in it is markup.
    return "".join(f"\\{one}" if one in r"\`*_|" else one for one in line)


class StatePicture(SphinxDirective):
    """Insert the picture and the list of one machine."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        machine = next((one for one in ALL if one.name == self.arguments[0]), None)
        if machine is None:
            raise self.error(f"there is no state machine {self.arguments[0]}")
        container = nodes.container()
        container += nodes.raw("", picture(machine), format="html")
        content = StringList(list(_list(machine)), source="<kumo_provisioner.states>")
        self.state.nested_parse(content, 0, container)
        return [container]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("state-picture", StatePicture)
    return {"version": "1", "parallel_read_safe": True}
