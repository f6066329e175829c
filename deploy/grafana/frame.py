"""The frame of all dashboards: variables, time range, links to each other, numbers above rows of panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana.panels import SOURCE, Panel

TAG = "tutti"


def dashboard_of(
    uid: str,
    title: str,
    text: str,
    numbers: Sequence[Panel],
    rows: Mapping[str, Sequence[Panel]],
    *choices: QueryVariable,
) -> Dashboard:
    """A dashboard with variables for the data source, the model and `choices`; `rows` are panels by title."""
    board = (
        Dashboard(title)
        .uid(f"tutti-{uid}")
        .description(text)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .link(
            DashboardLink("Tutti")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(choice("model", "Model", "tutti_ensemble_info"))
    )
    for variable in choices:
        board.with_variable(variable)
    for panel in numbers:
        board.with_panel(panel)
    for name, panels in rows.items():
        board.with_row(Row(name))
        for panel in panels:
            board.with_panel(panel)
    return board


def choice(label: str, title: str, series: str) -> QueryVariable:
    """The values of a label, of which none to all can be chosen."""
    return (
        QueryVariable(label)
        .label(title)
        .datasource(SOURCE)
        .query(f"label_values({series}, {label})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )
