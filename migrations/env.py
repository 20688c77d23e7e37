"""Alembic's environment for these migrations when outbox runs them itself.

The connection (or, for SQL output, the dialect) is in ``config.attributes``: see ``outbox.store.migrate``. An
application that merges these migrations into its own history uses its own env.py and never runs this file.
"""

from alembic import context

from outbox.store.migrate import configure

configure(context)
with context.begin_transaction():
    context.run_migrations()
