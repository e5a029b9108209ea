"""One module per kind of reference page; each returns the Markdown of its pages."""
