"""Carry the bytes. See docs/design.md."""
