"""Studies: one question, many runs. Study files, their trials, and running several trials at once."""
