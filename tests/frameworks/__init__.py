"""Sites made with web frameworks, as a newcomer to each would make them."""
