"""The outbox in SQL: an append-only log a lane, and the ledger of batches.

The tables and the row of a lane:
    schema            the tables, with the CHECKs that make impossible states unrepresentable
    ledger            the row of a lane: locked first, saved last under its version; the SQL that several modules share
    holes             numbers at or below the cursor that were not there when a claim looked
A step of the dispatcher:
    settle            a receipt into the ledger, under the lease token
    claim             what to send next: due batches, holes, new rows
    read_ahead        reading full batches before they are claimed
    optimistic        settle and claim without the lane's lock, while no other worker uses the lane
    optimistic_write  what such a step writes, as one statement where the database allows it
Upkeep, operators and reading:
    operate           requeue, discard, end pending entries, switch a lane off and on
    bounds            telemetry sheds beyond its bounds, usage takes no more
    age               the clock by which purge and shedding judge age
    retention         purge of rows and receipts, the floor, the lane's totals
    audit             what the ledger must say about every number, and what contradicts it
    mend              how strays come back, and lost rows are given up
    auditor           one audit from beginning to end: audit and mend in order
    queries           find, status, dead letters, outlook: reading only
    removed           counts of what was taken out of telemetry
    store             the facade that the dispatcher and the producer use
The database:
    dialects          a package, the only place that names a database: types, clock, insert, locks, sequences
    database          transactions as the outbox needs them
    engines           engines of its own, from a URL or a host's engine
    connections       which of the pool's connections are used again, and two kept at hand
    compiled          statements of the hot path, run by the driver's cursor
    forks             a child process starts without its parent's connections
    same_file         SQLite: notices that the file was removed or replaced while it is open
    same_place        whether a host's connection finds the tables that the outbox uses
    migrate           Alembic in code
    wake              wake-ups after a commit of this process
    watch             notifications of commits by other processes
"""
