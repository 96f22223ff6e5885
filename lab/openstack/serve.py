# SPDX-License-Identifier: Apache-2.0
"""Serve an OpenStack WSGI module with waitress: one process, a few native threads.

``python -m lab.openstack.serve MODULE ADDRESS PORT THREADS [ARGS...]``: MODULE's ``application``
is built at import from ``sys.argv``, as oslo.config in the service reads it, so ARGS are put there.
"""

from __future__ import annotations

import importlib
import sys

# Images go through one request body; waitress refuses more than 1 GiB unless told.
_MAX_BODY_BYTES = 1 << 40


def main(argv: list[str]) -> None:
    """Serve until terminated."""
    module, address, port, threads, *rest = argv
    sys.argv = [module, *rest]
    application = importlib.import_module(module).application

    import waitress  # type: ignore[import-untyped]

    waitress.serve(
        application,
        host=address,
        port=int(port),
        threads=int(threads),
        ident=None,
        max_request_body_size=_MAX_BODY_BYTES,
        clear_untrusted_proxy_headers=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
