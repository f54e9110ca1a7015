"""When people are warned: leaves pooled over a window of time, rules, and the life of an alert."""

from agridistill.edge.alerts.lifecycle import AlertMessage
from agridistill.edge.alerts.plots import PlotHealth, Plots
from agridistill.edge.alerts.rules import Rule

__all__ = ["AlertMessage", "PlotHealth", "Plots", "Rule"]
