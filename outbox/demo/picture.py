"""A chart of the demo's run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Timeline:
    """Samples of a run: seconds since its start, and counts of entries at that time."""

    seconds: list[float] = field(default_factory=list)
    enqueued: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    outage: tuple[float, float] = (0.0, 0.0)
    killed: float = 0.0

    def note(self, seconds: float, enqueued: int, delivered: int) -> None:
        self.seconds.append(seconds)
        self.enqueued.append(enqueued)
        self.delivered.append(delivered)


def draw(timeline: Timeline, lost: int, path: Path) -> None:
    """Write a PNG with two panels: entries committed and delivered, and the difference between them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    depth = [max(a - b, 0) for a, b in zip(timeline.enqueued, timeline.delivered, strict=True)]
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(10, 6.5), height_ratios=(3, 2))
    top.plot(timeline.seconds, timeline.enqueued, color="#777777", lw=2, ls="--", label="committed by the producers")
    top.plot(timeline.seconds, timeline.delivered, color="#1f77b4", lw=2.5, label="counted by beacon")
    bottom.fill_between(timeline.seconds, depth, color="#ff7f0e", alpha=0.45)
    bottom.plot(timeline.seconds, depth, color="#ff7f0e", lw=2)
    for axes in (top, bottom):
        axes.axvspan(*timeline.outage, color="#d62728", alpha=0.12, label="beacon is down")
        axes.axvline(timeline.killed, color="black", lw=1.5, ls=":", label="worker killed (kill -9)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    top.set_ylabel("entries, in all")
    bottom.set_ylabel("entries waiting")
    bottom.set_xlabel("seconds since the start")
    top.legend(loc="upper left", frameon=False)
    top.set_title(f"An outage and a killed worker: {lost} of {timeline.enqueued[-1]:,} entries lost", weight="bold")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
