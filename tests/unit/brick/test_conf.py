# SPDX-License-Identifier: Apache-2.0
"""Options of the connector, and what depends on the kernel."""

import pytest
from oslo_config import cfg

from os_brick_nvmeof import conf, props


def fails_after(release, **chosen):
    options = cfg.ConfigOpts()
    conf.register(options, release)
    for name, value in chosen.items():
        options.set_override(name, value, group=conf.GROUP)
    return conf.time_outs(options, props.REPLICATED).fast_io_fail


@pytest.mark.parametrize(
    ("release", "seconds"),
    [
        ("6.1.0-56-amd64", 2),
        ("5.14.0-427.el9.x86_64", 2),
        ("6.4.16", 2),
        ("6.5.0", 4),
        ("6.12.117+deb13", 4),
        ("10.0", 4),
        ("", 4),
        ("unknown", 4),
    ],
)
def test_kernels_that_notice_late_wait_for_less(release, seconds):
    assert fails_after(release) == seconds


def test_what_was_chosen_holds_on_each_kernel(tmp_path):
    assert fails_after("6.1.0", replicated_fast_io_fail=4) == 4
    file = tmp_path / "nova.conf"
    file.write_text("[os_brick_nvmeof]\nreplicated_fast_io_fail = 3\n")
    options = cfg.ConfigOpts()
    conf.register(options)
    options([], default_config_files=[str(file)])
    conf.suit(options, "6.1.0")
    assert conf.time_outs(options, props.REPLICATED).fast_io_fail == 3


def test_the_other_class_is_left_alone():
    options = cfg.ConfigOpts()
    conf.register(options, "6.1.0")
    conf.register(options, "6.12.0")
    assert conf.time_outs(options, props.PLAIN).fast_io_fail == -1
    assert conf.time_outs(options, props.REPLICATED).fast_io_fail == 2
