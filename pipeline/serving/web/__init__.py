"""HTTP around an answerer: who may ask, the routes, the page, the server and its metrics."""
