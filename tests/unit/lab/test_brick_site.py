# SPDX-License-Identifier: Apache-2.0
import pytest

from lab import brick_site
from lab.errors import LabError


@pytest.fixture
def package(tmp_path):
    """os-brick as a wheel of ours has left it: with an older module of ours in it."""
    top = tmp_path / "site/os_brick"
    for name in ("__init__.py", "tests/test_a.py", "initiator/connectors/nvmeof.py"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"# {name}\n")
    (top / "initiator/connectors/nvmeof_agent.py").write_text("# installed\n")
    return top


@pytest.fixture
def shipped(tmp_path):
    top = tmp_path / "shipped"
    for name in ("initiator/connectors/nvmeof_agent.py", "privileged/new.py"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("# shipped\n")
    return top


def test_both_editions(tmp_path, package, shipped):
    brick_site.make(tmp_path, package, shipped)
    files = {
        edition: {
            str(path.relative_to(tmp_path / "brick" / edition)): path.read_text()
            for path in (tmp_path / "brick" / edition).rglob("*.py")
        }
        for edition in ("stock", "ours")
    }
    stock = {
        "os_brick/__init__.py": "# __init__.py\n",
        "os_brick/initiator/connectors/nvmeof.py": "# initiator/connectors/nvmeof.py\n",
    }
    assert files["stock"] == stock
    assert files["ours"] == stock | {
        "os_brick/initiator/connectors/nvmeof_agent.py": "# shipped\n",
        "os_brick/privileged/new.py": "# shipped\n",
    }


def test_the_installed_os_brick_is_taken(tmp_path, shipped):
    brick_site.make(tmp_path, shipped=shipped)
    assert (tmp_path / "brick/stock/os_brick/initiator/connectors/nvmeof.py").exists()
    assert not (tmp_path / "brick/stock/os_brick/tests").exists()


def test_without_os_brick(tmp_path, monkeypatch):
    monkeypatch.setattr(brick_site.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"not installed here\nRun tools/prepare"):
        brick_site.make(tmp_path)


def test_an_edition_that_does_not_exist():
    with pytest.raises(LabError, match="no edition 'mine'"):
        brick_site.guest_path("mine")
