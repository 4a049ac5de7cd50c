"""The graph IR: the structure, its text and JSON forms, and which graphs are legal."""
