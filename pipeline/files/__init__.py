"""Files on disk and on object storage, Parquet tables, and one writer at a time for a folder. Knows nothing of runs."""
