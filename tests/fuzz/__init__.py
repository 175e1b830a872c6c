"""What Hypothesis makes up."""
