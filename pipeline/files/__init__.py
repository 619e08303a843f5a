"""Files on disk and in object storage, Parquet tables, and locks that give a folder one writer. Knows nothing of runs."""
