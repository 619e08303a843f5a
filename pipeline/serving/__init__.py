"""A trained model behind HTTP: uploads within limits, their classes as JSON, a page to try it; one process, or Ray Serve."""
