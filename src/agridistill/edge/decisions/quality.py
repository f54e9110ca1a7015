"""Quality gate of the agent: that of `runtime.verdict`, by which `predict` goes, too."""

from agridistill.runtime.verdict import QualitySettings, quality_problem

__all__ = ["QualitySettings", "quality_problem"]
