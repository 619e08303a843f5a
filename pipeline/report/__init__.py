"""Presents the results of ``pipeline.analysis`` to readers as pages, tables and plots."""
