"""PromQL in the few forms that the panels use. `selector` restricts to the dashboard's variables."""

from __future__ import annotations

MODEL = 'model=~"$model"'
MEMBER = 'member=~"$member"'
BOTH = f"{MODEL}, {MEMBER}"
# Members have series of their own, whichever model they work for; this keeps those of the chosen models.
OF_MODEL = f"and on (member) tutti_ensemble_info{{{MODEL}}}"


def rate(metric: str, selector: str, by: str = "") -> str:
    """Increase per second, summed."""
    return f"sum{_by(by)} (rate(tutti_{metric}{{{selector}}}[$__rate_interval]))"


def quantile(q: float, histogram: str, selector: str, by: str = "") -> str:
    """A quantile of a histogram."""
    by = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', selector, by)})"


def mean(histogram: str, selector: str, by: str = "") -> str:
    """The mean of what a histogram observed."""
    return f"{rate(f'{histogram}_sum', selector, by)} / {rate(f'{histogram}_count', selector, by)}"


def buckets(histogram: str, selector: str) -> str:
    """The number of observations in each bucket, for a heatmap."""
    return f"sum by (le) (increase(tutti_{histogram}_bucket{{{selector}}}[$__rate_interval]))"


def per(part: str, whole: str, *, on: str = "") -> str:
    """A ratio; `on` names the labels that join many parts to their whole."""
    return f"{part} / on ({on}) group_left {whole}" if on else f"{part} / {whole}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
