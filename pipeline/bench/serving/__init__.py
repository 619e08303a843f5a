"""How fast a served model answers: clients, a server and a plain loop on the same files."""
