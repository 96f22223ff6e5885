# SPDX-License-Identifier: Apache-2.0
"""Runs the migrations on the connection that the caller gives."""

from alembic import context

from kumo_provisioner.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
