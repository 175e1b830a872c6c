"""Bytes to exchanges and answers to bytes; no I/O. See docs/design.md."""
