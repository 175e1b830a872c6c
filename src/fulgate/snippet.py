"""What to write into a web server's configuration, for a socket that is served."""

from __future__ import annotations

from fulgate.endpoint import FASTCGI, Endpoint

__all__ = ["nginx"]


def nginx(endpoint: str, script_name: str = "") -> str:
    """Give the lines for nginx; "" where it does not speak what is spoken there.

    `endpoint` is a Unix or TCP one that one can connect to.
    """
    where = Endpoint.parse(endpoint)
    location = script_name + "/" if script_name else "/"
    if where.protocol == FASTCGI:
        lines = _fastcgi(script_name)
    elif where.protocol == "scgi":
        lines = _scgi(script_name)
    else:
        return ""
    body = "".join(f"        {line}\n" for line in lines)
    return (
        f"{_upstream(where)}"
        "server {\n"
        "    listen 80;\n"
        f"    location {location} {{\n"
        f"{body}"
        "    }\n"
        "}\n"
    )


def _upstream(where: Endpoint) -> str:
    note = ""
    if where.kind == "unix":
        note = "    # nginx must have write access: unix:PATH?group=www-data, or ?mode=666\n"
        server = f'"unix:{where.path}"' if " " in where.path else f"unix:{where.path}"
    else:
        server = where.plain.removeprefix("tcp:")
    # SCGI has one request for each connection.
    keep = "    keepalive 16;\n" if where.protocol == FASTCGI else ""
    return f"upstream fulgate {{\n{note}    server {server};\n{keep}}}\n"


def _fastcgi(script_name: str) -> list[str]:
    lines = ["include fastcgi_params;"]
    if script_name:
        lines.append(f'fastcgi_param SCRIPT_NAME "{script_name}";')
        lines.append("# PATH_INFO: fulgate makes it out of the rest")
    else:
        lines.append("fastcgi_param PATH_INFO   $fastcgi_script_name;")
    return [
        *lines,
        "fastcgi_param REQUEST_ID  $request_id;",
        "fastcgi_pass fulgate;",
        "fastcgi_keep_conn on;",
    ]


def _scgi(script_name: str) -> list[str]:
    mount = [f'scgi_param SCRIPT_NAME "{script_name}";'] if script_name else []
    # PATH_INFO: fulgate makes it out of DOCUMENT_URI and REQUEST_URI.
    return ["include scgi_params;", *mount, "scgi_param REQUEST_ID $request_id;",
            "scgi_pass fulgate;"]  # fmt: skip
