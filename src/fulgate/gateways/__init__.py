"""Have an application answer an exchange. See docs/design.md."""
