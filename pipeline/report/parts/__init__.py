"""What pages and sections are made of: tables, sentences, the formats they are printed in, and HTML files."""
