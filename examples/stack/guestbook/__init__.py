"""A guest book: a small Django application that reads and writes a database."""
