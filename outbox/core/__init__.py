"""Pure values and decisions: no clock, no randomness, no SQL, no HTTP. Read it first.

lane        the four lanes and what sets them apart: one table row each
lifecycle   the states of a batch and the status of an entry, with every legal move
runs        sets of sequence numbers as compact text: "1-900,905"
batching    where a batch is cut, what a gap in the log means
verdict     what an answer of beacon means: the published table
backoff     how long to wait before the next attempt
health      open, paused, off: the state machine of a lane
"""
