"""Clock skew between this host and a server, as a finding."""

from __future__ import annotations

from outbox.doctor.finding import Finding, ok, problem, warning
from outbox.settings_values import human_seconds

SKEW_SECONDS = 5.0
_MEND = "timedatectl set-ntp true, on the one whose clock is wrong"


def judge_skew(whose: str, ahead: float, exact: float, *, means: str, bearable: float) -> Finding:
    """``ahead``: seconds by which this host's clock is ahead of that of ``whose``; ``exact``: its error in seconds.

    Skew of up to SKEW_SECONDS plus the error is ok, beyond ``bearable`` seconds a problem, in between a warning.
    ``means``: the consequence of skew, part of the text of the finding.
    """
    apart = abs(ahead)
    if apart <= SKEW_SECONDS + exact:
        return ok(f"this host and {whose} agree, to {max(apart, exact):.1f} s")
    direction = "ahead of" if ahead > 0 else "behind"
    found = f"this host's clock is {human_seconds(round(apart))} {direction} {whose}: {means}"
    return problem(found, _MEND) if apart > bearable else warning(found, _MEND)
