"""The commands that stand alone: `fulgate.cli` imports each when it is used."""
