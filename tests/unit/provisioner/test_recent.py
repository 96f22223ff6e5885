# SPDX-License-Identifier: Apache-2.0
"""Answers that stay good for a moment."""

from kumo_provisioner.recent import Recent


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_an_answer_counts_for_its_time():
    clock = Clock()
    recent = Recent(1.0, clock=clock)
    assert recent.get("a") is None
    recent.put("a", 1)
    clock.now += 0.9
    assert recent.get("a") == 1
    recent.put("a", 2)
    clock.now += 0.9
    assert recent.get("a") == 2
    clock.now += 0.2
    assert recent.get("a") is None


def test_the_oldest_gives_way():
    recent = Recent(1.0, most=2)
    for key in ("a", "b", "a", "c"):
        recent.put(key, key)
    assert [recent.get(key) for key in ("a", "b", "c")] == ["a", None, "c"]
    recent.forget()
    assert recent.get("a") is None
