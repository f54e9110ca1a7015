"""Quality gate of the agent: that of `runtime.quality`, by which `predict` goes, too."""

from agridistill.runtime.quality import QualitySettings, quality_problem

__all__ = ["QualitySettings", "quality_problem"]
