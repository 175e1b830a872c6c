"""What to write into a web server's configuration, for a socket that is served."""

from __future__ import annotations

from fulgate.endpoint import Endpoint

__all__ = ["nginx"]


def nginx(endpoint: str, script_name: str = "") -> str:
    """Give the lines for nginx. `endpoint` is a Unix or TCP one that one can connect to."""
    where = Endpoint.parse(endpoint)
    note = ""
    if where.kind == "unix":
        note = "    # nginx must have write access: unix:PATH?group=www-data, or ?mode=666\n"
        server = f'"unix:{where.path}"' if " " in where.path else f"unix:{where.path}"
    else:
        server = str(where).removeprefix("tcp:")
    location = script_name + "/" if script_name else "/"
    mount = f'        fastcgi_param SCRIPT_NAME "{script_name}";\n'
    if script_name:
        mount += "        # PATH_INFO: fulgate makes it out of the rest\n"
    else:
        mount += "        fastcgi_param PATH_INFO   $fastcgi_script_name;\n"
    return (
        "upstream fulgate {\n"
        f"{note}"
        f"    server {server};\n"
        "    keepalive 16;\n"
        "}\n"
        "server {\n"
        "    listen 80;\n"
        f"    location {location} {{\n"
        "        include fastcgi_params;\n"
        f"{mount}"
        "        fastcgi_param REQUEST_ID  $request_id;\n"
        "        fastcgi_pass fulgate;\n"
        "        fastcgi_keep_conn on;\n"
        "    }\n"
        "}\n"
    )
