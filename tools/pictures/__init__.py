"""Pictures of dashboards, drawn from recorded metrics."""
