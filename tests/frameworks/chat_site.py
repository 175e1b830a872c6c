"""A chat of Starlette's WebSockets: who is there gets what anybody says."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

PAGE = """<!DOCTYPE html><title>chat</title><script>
const at = new URL("chat", location.href.replace("http", "ws"));
const socket = new WebSocket(at, ["chat"]);
socket.onopen = () => socket.send("hello from the page");
socket.onmessage = (e) => {
  fetch("seen", {method: "POST", body: socket.protocol + ":" + socket.extensions + ":" + e.data});
};
</script>"""

there: set[WebSocket] = set()
seen: list[str] = []


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


async def note(request: Request) -> Response:
    if request.method == "POST":
        seen.append((await request.body()).decode())
    return JSONResponse({"seen": seen, "there": len(there)})


async def chat(socket: WebSocket) -> None:
    if "forbidden" in socket.query_params:
        await socket.send_denial_response(JSONResponse({"why": "forbidden"}, status_code=418))
        return
    await socket.accept("chat" if "chat" in socket.scope["subprotocols"] else None)
    there.add(socket)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                break
            for other in list(there):
                if message.get("text") is not None:
                    await other.send_text(message["text"])
                else:
                    await other.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        pass
    finally:
        there.discard(socket)


app = Starlette(
    routes=[
        Route("/", page),
        Route("/seen", note, methods=["GET", "POST"]),
        WebSocketRoute("/chat", chat),
    ]
)
