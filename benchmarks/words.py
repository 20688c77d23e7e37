"""What REPORT.md says beside the figures: how each benchmark is read, and what its counts count."""

from __future__ import annotations

ABOUT = {
    "enqueue": (
        "*Added* is a row in a transaction of the caller's, without its commit; *put* is a transaction for each row, "
        "by hand a single statement that commits itself. Their messages are built before the clock starts. A bulk "
        "is measured from plain values: outbox builds, validates and encodes its messages within the time, and the "
        "loop by hand encodes trusted values."
    ),
    "drain": (
        "A committed backlog is leased, posted over HTTP and settled by one worker; the loop by hand posts by httpx "
        "too, one request at a time. These backlogs are short; the "
        "targets are of a million rows, which *scale* measures."
    ),
    "scale": (
        "A backlog of a million rows against one of 100k: the speed should not fall, and the worker's memory "
        "should not grow."
    ),
    "steady": (
        "A producer inserts 1,000 rows a commit as fast as it can while the worker delivers and purges; nothing "
        "is posted. Then the p99 of a put while another process purges at full speed, against one without a "
        "purge: the worst moment of a purge, not its share of a day."
    ),
    "latency": (
        "From the return of COMMIT to beacon's record of the row, without a backlog. 200 rows/s are 200 commits "
        "of one row; 2,000 rows/s are 200 commits of ten rows. *In one process*: the worker is a thread of the "
        "producer; *across processes*: it is `outbox worker`."
    ),
    "backpressure": (
        "Producers commit single rows at a fixed rate while beacon is in trouble. Their p99 in each trouble is "
        "compared with that of the healthy phases between the troubles: producers should notice nothing. "
        "*Goodput* is what beacon takes under its limit; an *ideal* recovery uses all of the capacity that a loop "
        "by hand was measured to have when beacon is back. In the picture, *leased* are batches under a lease, "
        "those which wait for a retry too."
    ),
    "otel": (
        "Spans through OutboxSpanProcessor, against the SDK's own BatchSpanProcessor and OTLP/HTTP exporter. With "
        "outbox a worker does the sending, in another process."
    ),
    "compression": (
        "The same backlog without and with compressed bodies, over a line of 20 Mbit/s and 40 ms, where they "
        "gain, and over loopback, where they only cost."
    ),
    "soak": (
        "The last quarter of a run against its first: what grows? All troubles come once a quarter. In a run of "
        "96 s a quarter is 24 s: a few rows that waited through a trouble make its p99, and the pace that the "
        "worker keeps after the last trouble makes its p50 (NOTES.md, *What drifts in soak*), so these two may be "
        "ten times apart either way. Sent rows are purged once a minute, so the database grows in a run of this "
        "length. Growth is to be looked for in the full profile, and in memory at any length."
    ),
    "peers": (
        "The same rows through other queues, on the same server and disk (peers/README.md: how each was tuned). "
        "In *nothing done with a row* outbox hands a batch of 1,000 rows to a function that does nothing, a peer "
        "a row, or what it takes at once. By POST, outbox sends 1,000 rows a request; a peer sends a request for "
        "each row, unless it is called *coalesced*."
    ),
}
"""By the name of the benchmark."""

COUNTED = {
    "committed": "rows committed",
    "lost": "rows lost (committed, never received)",
    "duplicates": "rows received more than once",
    "duplicates_elsewhere": "rows received more than once, but for those whose answer was lost",
    "duplicates_by_phase": "the same, by the phase of their first receipt",
    "duplicates_of_another_key": "rows received under two Idempotency-Keys",
    "waited_ms": "commit of a row, ms",
    "requests": "requests, by status",
    "statuses": "requests, by status",
}
"""By the key of the fact."""

NO_ANSWER = "no answer"
"""A status of 0."""
