"""Inline SVG for pages."""
