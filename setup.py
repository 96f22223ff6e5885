# SPDX-License-Identifier: Apache-2.0
import pathlib

import setuptools
from setuptools.command.build_py import build_py

# Modules that os-brick finds only in its own package; their directories here are those there.
PLUGIN = pathlib.Path("os_brick_nvmeof/plugin")
TARGET = "os_brick"


class BuildPy(build_py):
    """Puts the modules below ``plugin`` into os-brick's package, in a wheel.

    os-brick is a package of its own, so they cannot be listed as packages or modules: an editable
    installation would map all of ``os_brick`` to this tree. There, tools/prepare links them.
    """

    def run(self):
        super().run()
        for source, target in self._shipped():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=True):
        own = [str(target) for _source, target in self._shipped()]
        return super().get_outputs(include_bytecode) + own

    def _shipped(self):
        if getattr(self, "editable_mode", False):
            return []
        target = pathlib.Path(self.build_lib) / TARGET
        return [(path, target / path.relative_to(PLUGIN)) for path in sorted(PLUGIN.rglob("*.py"))]


class Distribution(setuptools.Distribution):
    # Not cmdclass: pbr puts its own there.
    def get_command_class(self, command):
        return BuildPy if command == "build_py" else super().get_command_class(command)


setuptools.setup(setup_requires=["pbr>=6.0.0"], pbr=True, distclass=Distribution)
