"""Parts of the report that appear only where there is something to show."""
