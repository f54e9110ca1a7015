"""Alerts: rules count the ill leaves of a plot in a window of time, and open and end its alerts."""

from agridistill.edge.alerts.lifecycle import AlertMessage
from agridistill.edge.alerts.plots import PlotHealth, Plots
from agridistill.edge.alerts.rules import Rule

__all__ = ["AlertMessage", "PlotHealth", "Plots", "Rule"]
