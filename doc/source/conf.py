# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

project = "Kumo"
copyright = "2026, Kumo developers"
author = "Kumo developers"
extensions = [
    "oslo_config.sphinxext",
    "error_codes",
    "extra_specs",
    "openapi_reference",
    "state_pictures",
]
html_theme = "alabaster"
html_theme_options = {
    "description": "Replicated NVMe-oF volumes for OpenStack",
    "page_width": "70em",
}
exclude_patterns = ["_generated/README*"]
openapi_documents = {"provisioner": "kumo_provisioner.app:describe"}
