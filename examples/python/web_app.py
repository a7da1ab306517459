"""The engine inside an asynchronous web application that is there already.

    python web_app.py [MODEL] [PORT]    then: curl 'http://127.0.0.1:8000/summary?text=...'

The application's own loop, routes and threads stay as they are; the engine is loaded when it starts and shut down when it
ends. Needs: pip install starlette uvicorn
"""
import contextlib
import sys

import tokenmill
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


def make_app(model):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        with tokenmill.Engine(model_path=model, log_level="warning") as app.state.llm:
            yield

    async def about(request):  # the application that was there before
        return JSONResponse({"service": "demo"})

    async def summary(request):
        messages = [{"role": "user", "content": "Sum this up in one sentence: " + request.query_params["text"]}]
        output = await request.app.state.llm.async_chat(messages, {"temperature": 0, "max_new_tokens": 60})
        return JSONResponse({"summary": output["text"], "tokens": output["meta_info"]["completion_tokens"]})

    return Starlette(routes=[Route("/", about), Route("/summary", summary)], lifespan=lifespan)


if __name__ == "__main__":
    model_path = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    uvicorn.run(make_app(model_path), host="127.0.0.1", port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
