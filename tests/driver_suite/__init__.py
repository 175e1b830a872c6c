"""What any driver must do, over real sockets. A test module imports all of it, and gives two
fixtures: `make_server(app, **settings)`, which starts a server and gives a `Served`, and `log`.
"""

# ruff: noqa: F403

from __future__ import annotations

from tests.driver_suite.aborts import *
from tests.driver_suite.answers import *
from tests.driver_suite.bodies import *
from tests.driver_suite.busy import *
from tests.driver_suite.connections import *
from tests.driver_suite.deadlines import *
from tests.driver_suite.files import *
from tests.driver_suite.filters import *
from tests.driver_suite.load import *
from tests.driver_suite.stopping import *
