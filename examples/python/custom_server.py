"""A server of your own in 60 lines: POST /generate, whole or streamed; a client that goes away ends its request.

    python custom_server.py [MODEL] [PORT]
    curl -N http://127.0.0.1:30000/generate -d '{"text": "Once upon a time", "stream": true}'

Needs: pip install starlette uvicorn
"""
import asyncio
import contextlib
import json
import sys

import tokenmill
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route


async def whole(request, llm, arguments):
    """The result, unless the client leaves first."""
    task = asyncio.ensure_future(llm.async_generate(**arguments))
    while not task.done():
        await asyncio.wait([task], timeout=0.2)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            return JSONResponse({"error": "the client has gone"}, status_code=499)
    return JSONResponse(task.result())


async def events(stream):
    """Server-sent events; leaving early, as Starlette does for a client that has gone, closes the stream."""
    try:
        async for chunk in stream:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        await stream.aclose()


async def generate(request):
    llm = request.app.state.llm
    try:
        body = await request.json()
        arguments = {"prompt": body.get("text"), "input_ids": body.get("input_ids"),
                     "sampling_params": body.get("sampling_params")}
        if body.get("stream"):
            stream = await llm.async_generate(**arguments, stream=True)
            return StreamingResponse(events(stream), media_type="text/event-stream")
        return await whole(request, llm, arguments)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        return JSONResponse({"error": str(error)}, status_code=400)


async def stats(request):
    return JSONResponse(request.app.state.llm.stats())


def make_app(**server_args):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        with tokenmill.Engine(**server_args) as app.state.llm:
            yield

    routes = [Route("/generate", generate, methods=["POST"]), Route("/stats", stats)]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    model_path = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    uvicorn.run(make_app(model_path=model_path, log_level="warning"), host="127.0.0.1",
                port=int(sys.argv[2]) if len(sys.argv) > 2 else 30000)
