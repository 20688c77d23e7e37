"""Alembic's entry for these migrations when outbox runs them itself.

The connection (or, for SQL output, the dialect) arrives in ``config.attributes``: see ``outbox.store.migrate``.
A host that merges this history into its own uses its own env.py and never runs this file.
"""

from alembic import context

from outbox.store.migrate import configure

configure(context)
with context.begin_transaction():
    context.run_migrations()
