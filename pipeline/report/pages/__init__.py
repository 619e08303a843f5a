"""Pages beside the report: a manifest, the views of a step, the quality of pseudo-labels."""
