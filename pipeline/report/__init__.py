"""What analysis found, as pages, tables and plots for readers."""
