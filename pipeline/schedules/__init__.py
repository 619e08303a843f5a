"""Commands that are started at set times, night after night: when, by whom, and what became of each night."""
