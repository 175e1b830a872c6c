"""The web server's side: a FastCGI client. See docs/design.md."""
