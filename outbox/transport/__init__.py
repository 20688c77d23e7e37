"""From a batch to a receipt: the only package that speaks HTTP. Read it in this order.

config       the settings it needs, and the checks on them (ConfigError, Offline)
secret       what must never be printed, and how it is masked where beacon echoes it
request      pure: a batch becomes a URL, headers and a body, by text alone
merge        pure: the envelopes of a telemetry batch as one OTLP document
compression  bodies in gzip or zstd, until the endpoint takes them only as they are
answer       pure: chunks off the wire become an Answer, exceptions become a Failure
verify       pure: beacon's answer to a licence becomes a token, or why there is none
token        the short-lived token: one verify in flight, life on the monotonic clock
deadline     one deadline over connect, write and read
tls          whom it trusts and which certificate it shows, also after a renewal
proxy        which proxy a request goes through
client       the httpx client: its connections, no redirects, no cookies
parts        an envelope that is too large for beacon, sent in parts
beacon       BeaconTransport.send(batch) -> Receipt
"""
