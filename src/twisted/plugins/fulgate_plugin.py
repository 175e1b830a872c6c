"""Makes `twistd fastcgi` known to Twisted."""

from twisted.application.service import ServiceMaker

fastcgi = ServiceMaker(
    "Fulgate",
    "fulgate.tap",
    "A FastCGI application server for WSGI applications.",
    "fastcgi",
)
