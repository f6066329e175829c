"""The kinds of panels: one question each, with its unit, its legend and a text that says how to read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

# Units, by Grafana's names.
SECONDS, RATIO, COUNT, NATS, TOKENS = "s", "percentunit", "short", "suffix: nats", "suffix: tokens"
OPERATIONS, PER_SECOND, TOKENS_PER_SECOND = "ops", "reqps", "suffix: tok/s"

Panel = Builder[dashboard.Panel]


class Query(NamedTuple):
    """An expression, and how its series are called."""

    expression: str
    legend: str


def each(shape: Callable[[str, str, str], str], metric: str, selector: str, by: str) -> list[Query]:
    """A series for each value of the labels `by`, called after them; `shape` is one of `promql`."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return [Query(shape(metric, selector, by), legend)]


class Limits(NamedTuple):
    """Thresholds above which a value is worth a look, and above which it is bad."""

    look: float
    bad: float


def lines(
    title: str,
    text: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int = 8,
    stacked: bool = False,
    top: float | None = None,
    limits: Limits | None = None,
) -> timeseries.Panel:
    """Series over time. `top` fixes the axis, which starts at 0; `limits` are drawn as lines."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .no_value("none yet")
        .height(8)
        .span(width)
        .line_width(1)
        .fill_opacity(50 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .calcs(["mean", "max", "lastNotNull"])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if top is not None:
        panel.max(top)
    if limits is not None:
        panel.thresholds(_steps(limits))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    for query, name in zip(queries, _names(queries), strict=True):
        panel.with_target(
            prometheus.Dataquery().expr(query.expression).legend_format(query.legend).range().ref_id(name)
        )
    return panel


def number(title: str, text: str, unit: str, expression: str, *, limits: Limits | None = None) -> stat.Panel:
    """The latest value, with its course behind it; coloured where there are limits."""
    panel = (
        stat.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .no_value("none yet")
        .height(4)
        .span(4)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE if limits else BigValueColorMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(prometheus.Dataquery().expr(expression).range().ref_id("A"))
    )
    return panel.thresholds(_steps(limits)) if limits else panel


def heat(title: str, text: str, unit: str, expression: str) -> heatmap.Panel:
    """A histogram's buckets over time."""
    target = prometheus.Dataquery().expr(expression).range().format(PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .height(8)
        .span(8)
        .calculate(False)
        .cell_gap(1)
        .show_tooltip()
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .with_target(target.legend_format("{{le}}").ref_id("A"))
    )


def rows(title: str, text: str, expression: str, columns: Sequence[str]) -> table.Panel:
    """The labels of the series that there are now."""
    places = {name: index for index, name in enumerate(columns)}
    only_those = {"indexByName": places, "includeByName": dict.fromkeys(columns, True)}
    query = prometheus.Dataquery().expr(expression).instant().format(PromQueryFormat.TABLE)
    return (
        table.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .height(8)
        .span(8)
        .show_header(True)
        .with_target(query.ref_id("A"))
        .with_transformation(DataTransformerConfig(id_val="organize", options=only_those))
    )


def _steps(limits: Limits) -> ThresholdsConfig:
    steps = [
        Threshold(value=None, color="green"),
        Threshold(value=limits.look, color="orange"),
        Threshold(value=limits.bad, color="red"),
    ]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _names(queries: Sequence[Query]) -> list[str]:
    """A, B, C: Grafana's names for the queries of a panel."""
    return [chr(ord("A") + index) for index in range(len(queries))]
