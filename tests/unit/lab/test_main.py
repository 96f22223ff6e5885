# SPDX-License-Identifier: Apache-2.0
import pytest

from lab import commands, main
from lab.errors import LabError, PreflightError, UsageError

VERBS = "build up status exec logs kill start reboot cut heal pause resume down scenarios run tour"


def parse(text):
    return main.build_parser().parse_args(text.split())


def test_every_verb_of_the_command_line_can_be_carried_out():
    choices = main.build_parser()._subparsers._group_actions[0].choices
    assert sorted(choices) == sorted(VERBS.split())
    assert all(callable(commands.find(verb)) for verb in choices)


def test_defaults():
    up = parse("up")
    assert (up.name, up.storage, up.compute, up.kernel) == ("kumo", 3, 1, "6.12")
    assert parse("build --kernel 6.1").kernel == "6.1"
    assert not parse("tour").keep
    assert parse("run --all --keep").keep
    assert parse("run a b").scenario == ["a", "b"]
    assert parse("kill --name x storage1 storage2").machines == ["storage1", "storage2"]
    assert parse("logs").log is None


def test_exec_passes_the_words_of_a_command_on():
    options = parse("exec compute1 -- ls -l --name")
    assert options.machine == "compute1"
    assert options.command == ["ls", "-l", "--name"]


@pytest.mark.parametrize(
    "text", ["", "fly", "up --storage -1", "up --storage x", "run", "run --all a", "kill", "exec m"]
)
def test_wrong_usage_ends_with_2(text, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(text)
    assert caught.value.code == 2
    assert "usage: kumo-lab" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PreflightError("qemu-img is missing", "apt-get install qemu-utils"), 2, "apt-get install"),
        (UsageError("there is no scenario 'x'"), 2, "no scenario"),
        (LabError("there is no lab 'kumo'", "kumo-lab up"), 1, "kumo-lab up"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_have_exit_codes(error, code, said, capsys):
    def command(options):
        raise error

    assert main.main(["status"], lambda verb: command) == code
    assert said in capsys.readouterr().err


def test_the_code_of_the_command_is_ours():
    assert main.main(["down"], lambda verb: lambda options: 7 if verb == "down" else 0) == 7
