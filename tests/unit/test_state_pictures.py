# SPDX-License-Identifier: Apache-2.0
"""The pictures of the states show what the tables say, and the page shows every picture."""

import pathlib
import re
import sys
from xml.etree import ElementTree

import pytest

from kumo_provisioner import states

DOC = pathlib.Path(__file__).resolve().parents[2] / "doc/source"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pictures():
    sys.path.insert(0, str(DOC / "_ext"))
    try:
        import state_pictures
    finally:
        sys.path.remove(str(DOC / "_ext"))
    return state_pictures


@pytest.fixture(params=states.ALL, ids=lambda machine: machine.name)
def machine(request):
    return request.param


@pytest.fixture
def svg(pictures, machine):
    return ElementTree.fromstring(pictures.picture(machine))


def marked(svg, kind):
    return [one for one in svg.iter() if one.get("class") == kind]


def test_every_transition_is_an_arrow_of_the_picture(svg, machine):
    arrows = [(one.get("data-from"), one.get("data-to")) for one in marked(svg, "transition")]
    assert sorted(arrows) == sorted((one.before, one.after) for one in machine.transitions)
    assert len(set(arrows)) == len(arrows)


def test_every_state_is_a_box_of_the_picture(svg, machine):
    boxes = marked(svg, "state")
    shown = [one.text for one in svg.iter(f"{SVG}text") if one.get("class") == "name"]
    assert shown == list(machine.states)
    assert len(boxes) == len(shown)
    ends = {name for one in machine.transitions for name in (one.before, one.after)}
    assert ends == {states.MADE, *machine.states, states.GONE}


def test_every_number_of_the_picture_is_in_the_list(svg, machine, pictures):
    numbers = [int(one.text) for one in svg.iter(f"{SVG}text") if one.get("class") == "number"]
    wanted = pictures.reasons(machine)
    assert numbers == [wanted[one.why] for one in machine.transitions]
    lines = list(pictures._list(machine))
    for one in machine.transitions:
        line = lines[wanted[one.why] - 1].replace("\\", "")
        assert line.startswith(f"{wanted[one.why]}. ")
        assert line.endswith(f": {one.why}")
        assert one.after in line
        assert one.before in line
    told = svg.find(f"{SVG}desc").text
    assert all(one.why in told for one in machine.transitions)


def test_boxes_lie_in_the_picture_and_apart(svg):
    _, _, wide, high = map(float, svg.get("viewBox").split())
    boxes = []
    for one in marked(svg, "state"):
        x, y, w, h = (float(one.get(key)) for key in ("x", "y", "width", "height"))
        assert x > 0
        assert y > 0
        assert x + w < wide
        assert y + h < high
        for left, top, width, height in boxes:
            assert x > left + width or left > x + w or y > top + height or top > y + h
        boxes.append((x, y, w, h))


def test_the_page_shows_every_machine():
    page = (DOC / "reference/states.rst").read_text()
    shown = re.findall(r"^\.\. state-picture:: (.+)$", page, re.M)
    assert sorted(shown) == sorted(machine.name for machine in states.ALL)
