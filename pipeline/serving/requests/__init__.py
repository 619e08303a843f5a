"""What a request asks for and may cost, how its video arrives, in its body or behind a URI, and what is checked first."""
