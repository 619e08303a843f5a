"""The table of all videos, its splits, label subsets and checks. Decodes no video; ``pipeline.prepare`` makes the table."""
