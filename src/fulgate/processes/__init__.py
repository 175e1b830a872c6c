"""Keep a pool of worker processes. See docs/design.md."""
