"""Draws the plots of the pages as inline SVG."""
