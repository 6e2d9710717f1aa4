"""What every recorded result names; see `stagecost_recipes.circumstances`."""

from stagecost_recipes.circumstances import ROOT, circumstances

__all__ = ["ROOT", "circumstances"]
