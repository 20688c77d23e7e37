"""The outbox in SQL: an append-only log a lane, and the ledger of batches.

schema      the tables, with the CHECKs that make impossible states unrepresentable
dialects    the only file that names a database: types, clock, insert, locks, sequences
database    engines and transactions as the outbox needs them
connections which of the pool's connections are used again, and two kept at hand
one_lock    how they wait for the one write lock of SQLite
migrate     Alembic in code
claim       due batches, holes, new rows: what to send next
settle      a receipt into the ledger, under the lease token
plain       both without the lane's lock, where this worker is alone and nothing is odd
joined      what that writes, as one statement
operate     requeue, discard, shed, switch off, purge
audit       what the ledger must say about every number, and what contradicts it
mend        how strays come back, and lost rows are given up
views       find, status, show: reading only
store       the facade that the dispatcher and the producer use
"""
