"""Serve the tests' applications: serve.py KIND ARGUMENTS, the latter as JSON."""

import importlib
import json
import os
import sys
import threading
import time

from tests.apps import app


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/about":
        facts = {
            "pid": os.getpid(),
            "main": threading.current_thread() is threading.main_thread(),
            "threads": threading.active_count(),
            "multithread": environ["wsgi.multithread"],
            "multiprocess": environ["wsgi.multiprocess"],
            "run_once": environ["wsgi.run_once"],
        }
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(facts).encode()]
    if path == "/sleep":
        time.sleep(60)
    if path == "/die":
        os._exit(3)
    return app(environ, start_response)


arguments = json.loads(sys.argv[2])
if isinstance(arguments.get("bindAddress"), list):
    arguments["bindAddress"] = tuple(arguments["bindAddress"])
module = importlib.import_module("fulgate.flup.server." + sys.argv[1])
server = module.WSGIServer(application, **arguments)
assert threading.active_count() == 1, "a thread before run()"
print("returned", server.run(), flush=True)
