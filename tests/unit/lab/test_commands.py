# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from lab import cluster, commands, image, main
from lab.errors import LabError, PreflightError
from lab.scenario import Needs, Registry


def good(ctx):
    with ctx.step("look"):
        pass


def bad(ctx):
    ctx.check(False, "saw nothing")


def stopped(ctx):
    raise KeyboardInterrupt


def module(run):
    return SimpleNamespace(
        SUMMARY=f"is {run.__name__}",
        NEEDS=Needs(1, 1),
        run=run,
        exports=lambda lab: {"OS_AUTH_URL": f"http://{lab.name}", "OS_PASSWORD": "a'b"},
    )


MODULES = {"tour": module(good), "bad": module(bad), "stopped": module(stopped)}


class Checks:
    """Stands for Preflight."""

    plans = []
    error = None

    def root_only(self):
        self.check(None)

    def check(self, plan):
        self.plans.append(plan)
        if self.error:
            raise self.error


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.setattr(Checks, "plans", [])
    monkeypatch.setattr(commands, "Preflight", Checks)
    return Checks


@pytest.fixture(autouse=True)
def place(labs, checks, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KUMO_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setattr(cluster, "Lab", labs)
    monkeypatch.setattr(commands, "Registry", lambda: Registry(MODULES, MODULES.__getitem__))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def lab(labs, screen):
    made = labs.up("kumo", storage=2, compute=1, progress=screen, kernel="6.12")
    labs.events.clear()
    return made


def call(text):
    return main.main(text.split())


def test_up_shows_what_is_up(labs, capsys, checks, tmp_path):
    assert call("up --storage 2 --name kumo") == 0
    out = capsys.readouterr().out
    assert "storage2" in out
    assert "provisioner" in out
    assert checks.plans[0].machines_mib == 2 * 640 + 1536
    assert set(checks.plans[0].directories) == {tmp_path / "labs", tmp_path / "cache"}


def test_a_missing_package_ends_everything_before_a_lab_is_made(labs, checks, monkeypatch):
    monkeypatch.setattr(checks, "error", PreflightError("qemu-img is missing"))
    assert [call(text) for text in ("up", "run --all", "tour", "build", "status")] == [2] * 5
    assert labs.events == []


def test_build_makes_both_images(monkeypatch, capsys, tmp_path):
    from lab import python_site

    made = []
    root = tmp_path / "image/root.ext4"
    built = image.Image(kernel=root, initrd=root, root=root, version="6.1.0-1")
    monkeypatch.setattr(image, "build", lambda kernel, progress: made.append(kernel) or built)
    monkeypatch.setattr(python_site, "build", lambda progress: made.append("site"))
    assert call("build --kernel 6.1") == 0
    assert made == ["6.1", "site"]
    assert "kernel 6.1.0-1" in capsys.readouterr().out


def test_commands_on_a_lab_that_is_not_there(capsys):
    assert call("status") == 1
    assert "kumo-lab up" in capsys.readouterr().err
    assert call("down") == 0


def test_down(lab, labs):
    assert call("down") == 0
    assert not labs.exists("kumo")


def test_exec_has_output_and_code_of_the_command(lab, capsys):
    assert call("exec storage1 -- ls -l") == 3
    assert lab.machines["storage1"].done == [(["ls", "-l"], False, 120.0)]
    assert main.main(["exec", "storage1", "--", "ls | wc"]) == 3
    assert lab.machines["storage1"].done[-1][0] == "ls | wc"
    assert "storage1: ls | wc" in capsys.readouterr().out


def test_an_unknown_machine_is_wrong_usage(lab, capsys):
    assert call("exec storage9 -- ls") == 2
    assert "Machines: storage1, storage2, compute1." in capsys.readouterr().err


def test_logs(lab, capsys):
    assert call("logs") == 0
    assert capsys.readouterr().out.split() == ["storage1", "storage2", "compute1", "provisioner"]
    assert call("logs storage1") == 0
    assert capsys.readouterr().out == "console of storage1\n"
    assert call("logs provisioner -n 1") == 0
    assert capsys.readouterr().out == "the last\n"
    assert call("logs nix") == 2
    lab.machines["storage1"].console_path.unlink()
    capsys.readouterr()
    assert call("logs storage1") == 0
    assert capsys.readouterr().out == ""


def test_machines_are_killed_and_started(lab):
    assert call("kill storage1 storage2") == 0
    assert [m.status for m in lab.machines.values()] == ["off", "off", "running"]
    assert call("start storage1") == 0
    assert [m.status for m in lab.machines.values()] == ["running", "off", "running"]
    assert call("kill storage1 storage9") == 2
    assert lab.machines["storage1"].status == "running"


def test_every_machine_verb_is_a_method_of_a_machine():
    from lab.machine import Machine

    assert all(callable(getattr(Machine, verb)) for verb in main._MACHINE_VERBS)


def test_scenarios(capsys):
    assert call("scenarios") == 0
    assert "1 storage, 1 compute" in capsys.readouterr().out


def test_run(labs, capsys, tmp_path):
    assert call("run tour") == 0
    assert call("run bad tour") == 1
    out = capsys.readouterr().out
    assert "FAILED saw nothing" in out
    assert len(list((tmp_path / "lab-failures").glob("*-bad"))) == 1
    assert labs.found == {}
    assert call("run nix") == 2


def test_run_all_stops_at_an_interrupt_and_leaves_nothing(labs, capsys):
    assert call("run bad stopped tour") == 130
    assert labs.found == {}
    out = capsys.readouterr().out
    assert "saw nothing" in out
    assert "is good" not in out


def test_a_running_lab_needs_no_further_memory(lab, checks, monkeypatch):
    assert call("run tour") == 0
    assert checks.plans[-1].machines_mib == 0
    assert call("run --all") == 130


def test_an_image_that_is_made_needs_no_space(checks):
    (image.cache_directory() / f"image-6.12-{image.key('6.12')}").mkdir(parents=True)
    assert call("run tour") == 0
    assert set(checks.plans[-1].directories) == {cluster.base_directory()}


def test_tour_with_keep_says_how_to_go_on(labs, capsys, monkeypatch):
    assert call("tour --keep --name mine") == 0
    out = capsys.readouterr().out
    assert "kumo-lab down --name mine" in out
    assert "export OS_AUTH_URL=http://mine\n" in out
    assert """export OS_PASSWORD='a'"'"'b'\n""" in out
    assert labs.exists("mine")


def test_a_failed_tour_with_keep_leaves_the_lab_without_exports(labs, capsys, monkeypatch):
    monkeypatch.setitem(MODULES, "tour", module(bad))
    assert call("tour --keep") == 1
    assert "export" not in capsys.readouterr().out
    assert labs.exists("kumo")


def test_exports_may_be_a_text():
    assert commands._shell("export A=b") == "export A=b"


def test_a_lab_that_stays_is_an_error(lab, labs, capsys):
    labs.stuck = True
    assert call("down") == 1
    assert "survived SIGKILL" in capsys.readouterr().err
    with pytest.raises(LabError):
        lab.down()
