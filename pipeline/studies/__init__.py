"""One question, many runs: study files, their trials, and how trials run at once."""
