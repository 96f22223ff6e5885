# SPDX-License-Identifier: Apache-2.0
"""The agent hands on what the connector wrote down of arrays that were stopped."""

import dataclasses

import pytest

from os_brick_nvmeof import props, stopped
from os_brick_nvmeof.agent import lastwords
from os_brick_nvmeof.agent.vendor import Vendor
from tests.fakes.agent_host import Host
from tests.unit.brick.volumes import LEGS, VOLUME

A, B, *_ = LEGS
HERE = props.AVAILABLE


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    made.attach()
    made.md.write("md127", b"data")
    made.detach(publication=7, tenant="t")
    return made


def told(host):
    return [what for name, *what in host.storage.calls if name == "word"]


def known(host):
    return stopped.known(host.ctx.locks)


def test_it_is_told_when_the_volume_is_not_published_any_more(host, run):
    (word,) = known(host)
    assert [one[:2] for one in word.legs] == [(A, HERE), (B, HERE)]
    run.agent.round()
    assert run.agent.asking.again.is_set()
    run.agent.asking.again.clear()
    run.agent.round()
    assert not run.agent.asking.again.is_set()
    run.agent.asking.pull()
    assert told(host) == []
    assert run.agent.asking.reporting()
    host.storage.published = False
    run.agent.asking.pull()
    assert told(host) == [[word]]
    assert known(host) == []
    assert not run.agent.asking.reporting()
    run.agent.asking.pull()
    assert len(told(host)) == 1


def test_it_is_told_again_until_it_is_taken(host, run):
    host.storage.published = False
    host.storage.busy = True
    run.agent.asking.pull()
    host.storage.busy, host.storage.away = False, True
    run.agent.asking.pull()
    assert len(known(host)) == 1
    # Another process finds it.
    host.storage.away = False
    run.start()
    run.agent.asking.pull()
    assert known(host) == []


def test_nobody_is_asked_again_and_again_who_does_not_answer(host, run, monkeypatch):
    (word,) = known(host)
    other = dataclasses.replace(word, volume="6a1c2f40-0000-4000-8000-0000000000bb")
    stopped.keep(host.ctx.locks, other)
    host.storage.published = False
    run.agent.asking.pull()
    host.storage.published, host.storage.away = False, True
    stopped.keep(host.ctx.locks, word)
    stopped.keep(host.ctx.locks, other)
    before = len(told(host))
    run.agent.last_words.send(run.agent.known.wanted)
    assert len(told(host)) == before + 1
    assert len(known(host)) == 2


def test_what_is_refused_is_dropped(host, run, caplog):
    host.storage.published, host.storage.refuses = False, True
    run.agent.asking.pull()
    assert known(host) == []
    assert "was not taken: too old" in caplog.text


def test_an_agent_that_is_late_finds_only_the_last_one(host, run):
    host.array_state = props.CLEAN
    host.attach()
    host.storage.published = False
    run.agent.asking.pull()
    assert told(host) == []
    host.md.write("md127", b"more")
    host.detach(publication=8)
    run.agent.asking.pull()
    assert [word.publication for (word,) in told(host)] == [8]


def test_the_provisioner_is_not_asked_often_for_ever(host, run):
    run.agent.asking.pull()
    assert run.agent.asking.reporting()
    host.settle(lastwords.HURRY)
    assert not run.agent.asking.reporting()
    assert len(known(host)) == 1


def test_one_that_was_written_meanwhile_is_not_dropped(host, run, monkeypatch):
    (word,) = known(host)
    newer = stopped.Stopped(VOLUME, "t", 8, word.legs)
    for now in (
        lambda: stopped.keep(host.ctx.locks, newer),
        lambda: stopped.forget(host.ctx.locks, VOLUME),
    ):
        stopped.keep(host.ctx.locks, word)
        monkeypatch.setattr(host.storage, "last_word", lambda word, now=now: now() or True)
        host.storage.published = False
        run.agent.asking.pull()
        assert known(host) in ([newer], [])
        assert word not in known(host)


def test_a_directory_that_cannot_be_read_stops_nothing(host, run, monkeypatch, caplog):
    def refuse(_locks):
        raise PermissionError(13, "no")

    monkeypatch.setattr(stopped, "marks", refuse)
    run.round()
    assert "cannot be told" in caplog.text
    assert "cannot be handed on" in caplog.text


def test_a_maker_who_keeps_no_such_record_has_nothing_to_do():
    assert Vendor.last_word(None, None) is True
