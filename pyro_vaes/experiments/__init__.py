"""Studies in general: runs, engines, comparisons, panels, pages."""
