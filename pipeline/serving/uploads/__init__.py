"""How videos arrive: in the body of a request or behind a URI; and what is looked at before one is decoded."""
