"""Sections of the report's page that appear only if there is something to show."""
