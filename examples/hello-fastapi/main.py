"""An ordinary FastAPI server: JSON, streams both ways, server-sent events, and a WebSocket that echoes."""

import asyncio
import os
from datetime import datetime, timezone

import uvicorn
from fastapi import Body, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.get("/")
def hello(name: str = "World"):
    print(f"greeting {name}")  # goes to the function's logs, never into the answer
    return {"message": f"Hello, {name}!"}


@app.post("/")
def hello_json(body: dict | None = Body(None)):
    return {"message": f"Hello, {(body or {}).get('name', 'World')}!"}


@app.put("/upload")
async def upload(request: Request):
    """Counts what is uploaded, however much that is."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return {"bytes": size}


@app.get("/download/{size}")
def download(size: int):
    """Sends as many bytes as are asked for."""

    async def chunks():
        left = size
        while left > 0:
            part = min(left, 64 * 1024)
            left -= part
            yield b"x" * part

    return StreamingResponse(chunks(), media_type="application/octet-stream")


@app.get("/events")
def events(ms: int = 1000):
    """Tells the time, once for each interval."""

    async def tell():
        number = 0
        while True:
            yield f"id: {number}\ndata: {datetime.now(timezone.utc).isoformat()}\n\n"
            number += 1
            await asyncio.sleep(ms / 1000)

    return StreamingResponse(tell(), media_type="text/event-stream")


@app.websocket("/echo")
async def echo(socket: WebSocket):
    await socket.accept()
    try:
        while True:
            message = await socket.receive()
            if message.get("text") is not None:
                await socket.send_text(message["text"])
            elif message.get("bytes") is not None:
                await socket.send_bytes(message["bytes"])
            else:
                return
    except WebSocketDisconnect:
        return


uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]))
