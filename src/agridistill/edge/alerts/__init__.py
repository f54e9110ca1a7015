"""Alerts: rules open an alert on a plot when too many of its recent leaves are ill, and end it when few are."""

from agridistill.edge.alerts.plots import AlertMessage, Plots
from agridistill.edge.alerts.rules import PlotHealth, Rule

__all__ = ["AlertMessage", "PlotHealth", "Plots", "Rule"]
