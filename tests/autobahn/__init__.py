"""The test cases of the Autobahn Testsuite for WebSocket servers, as a table of our own.

`cases.py` has them by their numbers, `play.py` does what they say over a wire, `wires.py` are the
ways to a server.
"""
