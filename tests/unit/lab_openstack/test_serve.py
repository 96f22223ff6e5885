# SPDX-License-Identifier: Apache-2.0
import sys
import types

import waitress

from lab.openstack import serve
from lab.openstack.service import wsgi_argv


def test_application_is_served_with_the_arguments_its_config_reads(monkeypatch):
    served = {}
    module = types.ModuleType("some_wsgi")
    module.application = object()
    monkeypatch.setitem(sys.modules, "some_wsgi", module)
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(waitress, "serve", lambda app, **options: served.update(options, app=app))

    argv = wsgi_argv("some_wsgi", "192.0.2.7", 8776, 4, "--config-file", "f")
    assert argv[1:3] == ["-m", "lab.openstack.serve"]
    serve.main(argv[3:])

    assert served["app"] is module.application
    assert (served["host"], served["port"], served["threads"]) == ("192.0.2.7", 8776, 4)
    assert sys.argv == ["some_wsgi", "--config-file", "f"]
