"""Pure values and decisions: no clock, no randomness, no SQL, no HTTP. Read it first.

lane          the four lanes and what sets them apart: one table row each
lifecycle     the states of a batch and the status of an entry, with every legal move
runs          sets of sequence numbers as compact text: "1-900,905"
batching      where a batch is cut, what a gap in the log means
batch         a leased batch, as the worker holds it until it is settled
receipt       an answer or a failure of a request, and the verdict on it
answer_body   what the body and the headers of an answer say
duplicate     whether a 409 says that beacon already has the batch
verdict       what an answer of beacon means: the published table
backoff       how long to wait before the next attempt
transition    the moves of a leased batch, decided from its receipt
health        open, paused, off: the state machine of a lane
concurrency   how many requests of a lane may be in flight
steady        the time by which age is judged when the database's clock jumps
pace          how many requests a second a lane may begin, once beacon limits them
policy        the bounds that the store and the dispatcher decide by
step          what passes between the dispatcher and the store
entry         what a reader of the outbox sees: an entry, a dead letter, the status of a lane
telemetry     the tree of an OTLP/JSON document, and how it is cut
idle          how long an idle lane waits before its next tick
privacy       what was taken out of telemetry, in words
text          text from outside, made safe to store and to print
"""
