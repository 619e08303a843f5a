"""Pages other than the report: a manifest, the views of a training step, the quality of pseudo-labels."""
